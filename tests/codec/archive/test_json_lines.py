"""codec.archive.json_lines: every byte of a file comes back, and every usual text is a document."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.archive.json_lines import join, split
from codec.errors import FormatError

PRETTY = '{"text": "é / \\"quoted\\" \\n \\u0001 ☃ \U0001f600"}'

CASES = {  # what was tried on other tools: (file, texts)
    "more fields": (b'{"id": 7, "text": "a", "url": "http"}\n', [b"a"]),
    "the last of equal keys": (b'{"text": "first", "text": "second"}\n', [b"second"]),
    "no space": (b'{"text":"a"}\n', [b"a"]),
    "space around": (b' \t{ "text" : "a" } \n', [b"a"]),
    "nested text": (b'{"x": {"text": "no"}, "text": "a"}\n', [b"a"]),
    "CRLF": (b'{"text": "a"}\r\n{"text": "b"}\r\n', [b"a", b"b"]),
    "no last newline": (b'{"text": "a"}\n{"text": "b"}', [b"a", b"b"]),
    "BOM": (b'\xef\xbb\xbf{"text": "a"}\n', [b"a"]),
    "blank lines": (b'\n{"text": "a"}\n\n  \n', [b"a"]),
    "lone surrogate": (b'{"text": "\\ud800"}\n{"text": "b"}\n', [b"b"]),
    "no objects": (b'[1]\n"text"\n3\nnull\n{}\n{"text": null}\n{"text": 3}\n', []),
    "invalid UTF-8": (b'{"text": "\xff\xfe"}\n\xff{"text": "a"}\n', []),
    "ASCII": (json.dumps({"text": "é☃\U0001f600\x7f"}).encode(), ["é☃\U0001f600\x7f".encode()]),
    "escaped slashes": (b'{"text": "a\\/b"}', [b"a/b"]),
    "ASCII with escaped slashes": (b'{"text": "\\u00e9\\/"}', ["é/".encode()]),
    "capital hex": (
        b'{"text": "some words and \\u00E9 and more of them"}',
        ["some words and é and more of them".encode()],
    ),
    "escaped line end": (b'{"text": "a line that ends\\u000a and another"}', [b"a line that ends\n and another"]),
    "U+2028": ('{"text": "a\u2028b\x85"}\n'.encode(), ["a\u2028b\x85".encode()]),
    "CR only": (b'{"text": "a"}\r{"text": "b"}\r', []),
    "two objects": (b'{"text": "a"}{"text": "b"}\n', []),
    "cut": (b'{"text": "a"', []),
    "deep": (b'{"x": ' + b"[" * 100_000 + b', "text": "a"}', []),
    "long number": (b'{"n": ' + b"9" * 5000 + b', "text": "a"}\n', []),
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), []),
    "empty": (b"", []),
    "empty texts": (b'{"text": ""}\n' * 3, [b"", b"", b""]),
    "NUL": (b'{"text": "\\u0000"}\n\0', [b"\0"]),
    "raw control": (b'{"text": "\t"}', []),
    "pretty": (PRETTY.encode(), [json.loads(PRETTY)["text"].encode()]),
}


def joined(texts: list[bytes], frame: bytes, size: int) -> bytes:
    return b"".join(join(iter(texts), frame, size))


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    data, texts = CASES[name]
    found, frame = split(data)
    assert found == texts
    assert joined(found, frame, len(data)) == data


def test_all_cases_in_one_file():
    data = b"\n".join(data for data, _ in CASES.values())
    texts, frame = split(data)
    assert joined(texts, frame, len(data)) == data


LINES = st.dictionaries(st.sampled_from(["text", "id", "é"]), st.text() | st.integers() | st.none()).flatmap(
    lambda value: st.booleans().map(
        lambda ascii: json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    )
)


@given(
    st.lists(LINES | st.binary(max_size=30) | st.text(max_size=30).map(lambda t: t.encode("utf-8", "surrogatepass")))
)
@example([b'{"text":"' + bytes(range(32, 256)) + b'"}'])
def test_any_lines_come_back(lines):
    data = b"\n".join(lines)
    texts, frame = split(data)
    assert joined(texts, frame, len(data)) == data


@given(st.text(), st.data())
def test_any_escapes_come_back(text, data):
    written = "".join(
        data.draw(
            st.sampled_from([json.dumps(c)[1:-1], json.dumps(c, ensure_ascii=False)[1:-1], json.dumps(c)[1:-1].upper()])
        )
        if ord(c) > 127
        else json.dumps(c)[1:-1]
        for c in text
    ).replace("\\U", "\\u")
    line = f'{{"text": "{written}"}}\n'.encode()
    texts, frame = split(line)
    assert joined(texts, frame, len(line)) == line
    assert texts in ([text.encode()], [])


@pytest.mark.parametrize(
    ("texts", "frame", "size"),
    [
        ([], b'{"text": \xff\x00}', 12),
        ([b"a", b"b"], b'{"text": \xff\x00}', 13),
        ([b"a"], b'{"text": \xff\x00}', 12),
        ([b"a"], b'{"text": \xff\x00}', 14),
        ([b"a"], b'{"text": \xff', 10),
        ([b"a"], b'{"text": \xff\x07}', 13),
        ([b"\xff"], b'{"text": \xff\x00}', 13),
        ([b"a"], b"\xff\x04\xff\xff\xff\xff\x7f\x01x", 3),
        ([b"a"], b"\xff\x04\x01\x02\x05\x00", 3),
        ([b"a"], b"\xff\x04\x01\x02\x00\x09", 3),
        ([b"a"], b"\xff\x04\x00\x02ab", 3),
        ([b"a"], b"\xff\x04", 3),
    ],
    ids=range(12),
)
def test_frames_that_lie(texts, frame, size):
    with pytest.raises(FormatError):
        joined(texts, frame, size)
