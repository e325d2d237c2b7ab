"""codec.textfile: files as documents and back."""

import json
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.errors import FormatError
from codec.textfile import PIECE, read_text_file, split, write_text_file


def text_of(documents: list[bytes], kind: str) -> bytes:
    stream = BytesIO()
    write_text_file(stream, documents, kind)
    return stream.getvalue()


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


@pytest.mark.parametrize("data", [b"", b"\0\xff", b"a\r\nb\r\n", b"line\n" * 5000], ids=len)
def test_a_plain_file_comes_back(tmp_path, data):
    path = tmp_path / "text.bin"
    path.write_bytes(data)
    text = read_text_file(path)
    assert text.kind == "file"
    assert text_of(text.documents, text.kind) == data


@given(st.lists(st.text(), max_size=8))
@example(["", "\n\r\u2028\u0085", "é ☃ \U0001f600", '"\\'])
def test_json_lines_come_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("jsonl") / "t.jsonl"
    documents = [text.encode() for text in texts]
    path.write_bytes(text_of(documents, "jsonl"))
    text = read_text_file(path)
    assert (text.kind, text.documents) == ("jsonl", documents)
    assert [json.loads(line)["text"] for line in path.read_bytes().split(b"\n")[:-1]] == texts


def test_other_fields_and_line_ends_are_not_the_document(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"id": 1, "text": "a\\n"}\r\n{"text": "\\u00e9"}')
    assert read_text_file(path).documents == [b"a\n", "é".encode()]
    path.write_bytes(b"")
    assert read_text_file(path).documents == []


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"text", b"[]", b"null", b'"text"', b"{}", b'{"text": 3}', b'{"text": null}'),
        *(b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "a"} {}'),
    ],
    ids=range(12),
)
def test_lines_that_are_no_documents(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + line + b"\n")
    with pytest.raises(FormatError, match=r"t\.jsonl, line 2: expected a JSON object with a string `text`"):
        read_text_file(path)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.jsonl"):
        with pytest.raises(FormatError, match="pass the path of an existing, readable file"):
            read_text_file(path)
