r"""Take the texts out of JSON Lines, and put them back to the byte.

The *frame* is the file without the texts: the literal of each line's top-level `text` is replaced by a byte 0xFF and a
byte that says how the text was escaped. A line that is no object with such a text stays in the frame as it is, with
each of its bytes 0xFF doubled. Where a literal is escaped in no usual way, the exceptions follow in the frame.

>>> split(b'{"id": 7, "text": "a\\n"}\r\nno JSON')
([b'a\n'], b'{"id": 7, "text": \xff\x00}\r\nno JSON')
"""

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]

from codec.entropy.varint import Fields, varint
from codec.errors import FormatError

_MARK = b"\xff"  # no byte of UTF-8
_ODD = 4  # the style of a literal with exceptions; below are the usual ones
_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)
_DECODER = json.JSONDecoder()


def literal(text: str, style: int) -> str:
    r"""Return the JSON literal of a text: style 0 as it is, 1 in ASCII, 2 and 3 the same with `\/` for `/`."""
    found = json.dumps(text, ensure_ascii=bool(style & 1))
    return found.replace("/", "\\/") if style & 2 else found


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the texts of the lines of a file, and the frame."""
    texts: list[bytes] = []
    frame: list[bytes] = []
    for line in data.splitlines(True) if b"\r" not in data else _lines(data):
        found = _split_line(line)
        if found is None:
            frame.append(line.replace(_MARK, _MARK + _MARK))
        else:
            texts.append(found[0])
            frame.append(found[1])
    return texts, b"".join(frame)


def _lines(data: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin) + 1 or len(data)
        yield data[begin:end]
        begin = end


def _split_line(line: bytes) -> tuple[bytes, bytes] | None:
    """Return the text of a line and the line's part of the frame; None where the line stays as it is."""
    try:
        string = line.decode()
        span = _find_text(string)
        if span is None:
            return None
        text, begin, end = span
        encoded = text.encode()  # lone surrogates are an error
    except (ValueError, RecursionError, IndexError):
        return None
    code = _code(text, string[begin:end])
    if code is None:
        return None
    return encoded, string[:begin].encode() + _MARK + code + string[end:].encode()


def _find_text(line: str) -> tuple[str, int, int] | None:
    """Return (text, begin, end) of the last literal of a top-level `text`, the one that readers of JSON take.

    Raises:
        ValueError, IndexError, RecursionError: not JSON.
    """
    at = _skip(line, 1 if line[:1] == "\ufeff" else 0)
    if line[at] != "{":
        return None
    found: tuple[str, int, int] | None = None
    at = _skip(line, at + 1)
    more = line[at] != "}"
    while more:
        if line[at] != '"':
            raise ValueError("no key")
        key, at = scanstring(line, at + 1, True)
        at = _skip(line, at)
        if line[at] != ":":
            raise ValueError("no value")
        at = begin = _skip(line, at + 1)
        if line[at] == '"':
            value, at = scanstring(line, at + 1, True)
        else:
            value, at = _DECODER.raw_decode(line, at)
        if key == "text":
            found = (value, begin, at) if isinstance(value, str) else None
        at = _skip(line, at)
        more = line[at] == ","
        if more:
            at = _skip(line, at + 1)
        elif line[at] != "}":
            raise ValueError("no end")
    if _skip(line, at + 1) != len(line):
        raise ValueError("more than an object")
    return found


def _skip(line: str, at: int) -> int:
    match = _SPACE.match(line, at)
    return match.end() if match else at


def _code(text: str, written: str) -> bytes | None:
    """Return how the frame says that `text` is written so; None where that takes more than half of `written`."""
    for style in range(_ODD):
        if written == literal(text, style):
            return bytes([style])
    style = 0 if any(ord(c) > 127 for c in written) else 1
    exceptions, gap = [], 0
    parts = _ESCAPE.findall(written[1:-1])
    if len(parts) != len(text):
        return None
    for char, part in zip(text, parts, strict=True):
        if part == literal(char, style)[1:-1]:
            gap += 1
        else:
            raw = part.encode()
            exceptions.append(varint(gap) + varint(len(raw)) + raw)
            gap = 0
    blob = b"".join(exceptions)
    if 2 * len(blob) > len(written):
        return None
    return bytes([_ODD + style]) + varint(len(exceptions)) + varint(len(blob)) + blob


def _odd_literal(text: str, style: int, fields: Fields, count: int) -> str:
    parts, at = ['"'], 0
    for _ in range(count):
        gap = fields.count(len(text) - at - 1, "characters between exceptions")
        parts += [literal(text[at : at + gap], style)[1:-1], fields.take(fields.number()).decode()]
        at += gap + 1
    return "".join([*parts, literal(text[at:], style)[1:-1], '"'])


def join(texts: Iterator[bytes], frame: bytes, size: int) -> Iterator[bytes]:
    """Put together the file of `size` bytes that `split` took apart; yield pieces.

    Raises:
        FormatError: texts and frame do not make up a file of this size.
    """
    try:
        for piece in _pieces(texts, frame):
            size -= len(piece)
            if size < 0:
                break
            yield piece
    except (UnicodeError, StopIteration, RuntimeError) as error:
        raise FormatError(
            f"JSON Lines: texts and frame do not fit together ({error!r}); the archive is damaged"
        ) from error
    if size or next(texts, None) is not None:
        raise FormatError("JSON Lines: texts and frame make up another file; the archive is damaged")


def _pieces(texts: Iterator[bytes], frame: bytes) -> Iterator[bytes]:
    at = 0
    while (mark := frame.find(_MARK, at)) >= 0:
        yield frame[at:mark]
        code = frame[mark + 1] if mark + 1 < len(frame) else -1
        at = mark + 2
        if code == _MARK[0]:
            yield _MARK
        elif 0 <= code < _ODD:
            yield literal(next(texts).decode(), code).encode()
        elif _ODD <= code < _ODD + 2:
            fields = Fields(frame[at : at + 20], "JSON Lines: frame")
            count, length = fields.number(), fields.number()
            at += min(20, len(frame) - at) - fields.left
            exceptions = Fields(frame[at : at + length], "JSON Lines: frame")
            yield _odd_literal(next(texts).decode(), code - _ODD, exceptions, count).encode()
            exceptions.end()
            at += length
        else:
            raise FormatError(f"JSON Lines: code {code} in the frame; the archive is damaged")
    yield frame[at:]
