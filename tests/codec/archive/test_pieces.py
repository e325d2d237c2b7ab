"""codec.archive.pieces: files as documents and back."""

import json
import tracemalloc
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.archive.pieces import BINARY_PIECE, PIECE, pieces, read_lines, split, write_line
from codec.errors import FormatError


@given(st.lists(st.sampled_from([b"word ", b"line\n", b"x" * 1000, b"\n", b"\xff" * 5000, b" " * 3000]), max_size=60))
@example([])
@example([b"x" * PIECE])
@example([b"x" * (PIECE + 1)])
@example([b"\n" + b"x" * PIECE])
def test_pieces_concatenate(parts):
    data = b"".join(parts)
    pieces = split(data)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= PIECE for piece in pieces) or data == b""


def test_pieces_end_with_lines():
    data = b"".join(b"This is line %d of a longer text.\n" % i for i in range(2000))
    pieces = split(data)
    assert all(piece.endswith(b"\n") and len(piece) > PIECE - 40 for piece in pieces[:-1])
    assert split(b"") == [b""]
    words = split(b"word " * 5000)
    assert all(piece.endswith(b" ") for piece in words[:-1])


class Trickle(BytesIO):
    """Delivers few bytes at a time, as a pipe does."""

    def read(self, size=-1):
        return super().read(min(size, 777))


@given(st.lists(st.sampled_from([b"word " * 300, b"line\n", b"x" * 1000, b"\0", b"\xff" * 5000]), max_size=60))
@example([b"\0" * (BINARY_PIECE + 1)])
@example([b"x" * PIECE, b"\0" * 3 * BINARY_PIECE, b"x" * 3 * PIECE])
def test_pieces_of_streams_and_of_binary_files(parts):
    data = b"".join(parts) * 3
    found = split(data)
    assert b"".join(found) == data
    assert list(pieces(Trickle(data))) == found
    begin = 0
    for piece in found[:-1]:
        assert (len(piece) == BINARY_PIECE) == (b"\0" in data[begin : begin + PIECE])
        begin += len(piece)


def test_pieces_of_a_large_stream_take_little_memory():
    class Endless(BytesIO):
        def read(self, size=-1):
            return b"word " * (size // 5)

    tracemalloc.start()
    total = 0
    for piece in pieces(Endless()):
        total += len(piece)
        if total > 1 << 26:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


@given(st.lists(st.text(), max_size=8))
@example(["", "\n\r\u2028\u0085", "é ☃ \U0001f600", '"\\'])
def test_json_lines_come_back(texts):
    documents = [text.encode() for text in texts]
    lines = b"".join(map(write_line, documents))
    assert list(read_lines(BytesIO(lines), "t")) == documents
    assert [json.loads(line)["text"] for line in lines.split(b"\n")[:-1]] == texts


def test_other_fields_and_line_ends_are_not_the_document():
    lines = b'{"id": 1, "text": "a\\n"}\r\n{"text": "\\u00e9"}'
    assert list(read_lines(BytesIO(lines), "t")) == [b"a\n", "é".encode()]
    assert list(read_lines(BytesIO(b""), "t")) == []


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"text", b"[]", b"null", b'"text"', b"{}", b'{"text": 3}', b'{"text": null}'),
        *(b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "a"} {}'),
    ],
    ids=range(12),
)
def test_lines_that_are_no_documents(line):
    lines = read_lines(BytesIO(b'{"text": "first"}\n' + line + b"\n"), "t.jsonl")
    assert next(lines) == b"first"
    with pytest.raises(FormatError, match=r"t\.jsonl, line 2: expected a JSON object with a string `text`"):
        next(lines)


def test_lines_that_are_too_long(monkeypatch):
    monkeypatch.setattr("codec.archive.pieces.MAX_LINE", 14)
    assert list(read_lines(BytesIO(b'{"text": "ab"}'), "t")) == [b"ab"]
    with pytest.raises(FormatError, match="t, line 1: over 14 bytes; split the document"):
        list(read_lines(BytesIO(b'{"text": "abc"}'), "t"))
