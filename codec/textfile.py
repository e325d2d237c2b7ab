"""Files as documents: JSON Lines by line, anything else cut at line ends into pieces that are coded side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from codec.errors import FormatError
from codec.files import read_bytes

Kind = Literal["file", "jsonl"]

PIECE = 1 << 13
"""Bytes of a plain file's pieces: about the context of a model, and enough pieces to fill the decoder's lanes."""


@dataclass(frozen=True)
class TextFile:
    """`documents` of kind "file" concatenate to the file; of kind "jsonl" they are the `text` of its lines."""

    kind: Kind
    documents: list[bytes]


def read_text_file(path: Path) -> TextFile:
    """Read a file as documents; one that ends in `.jsonl` by its lines' `text`.

    Raises:
        FormatError: no such file, or a line that is no JSON object with a string `text`.
    """
    data = read_bytes(path, "text")
    if path.suffix != ".jsonl":
        return TextFile("file", split(data))
    documents = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            documents.append(json.loads(line)["text"].encode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{path}, line {number}: expected a JSON object with a string `text` ({error!r})"
            ) from error
    return TextFile("jsonl", documents)


def split(data: bytes) -> list[bytes]:
    """Pieces of PIECE / 2 to PIECE bytes (the last of fewer) that concatenate to `data`.

    They end behind the last line end that allows it, or behind a space, or between two characters.
    """
    pieces = []
    begin = 0
    while len(data) - begin > PIECE:
        half, end = begin + PIECE // 2, begin + PIECE
        cut = data.rfind(b"\n", half, end) + 1 or data.rfind(b" ", half, end) + 1
        while not cut and end > half and data[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        end = cut or end
        pieces.append(data[begin:end])
        begin = end
    return [*pieces, data[begin:]]


def write_text_file(stream: BinaryIO, documents: Sequence[bytes], kind: str) -> None:
    """The counterpart of `read_text_file`; `jsonl` lines hold `text` alone. Other kinds are concatenated."""
    for document in documents:
        if kind == "jsonl":
            stream.write(json.dumps({"text": document.decode("utf-8", "replace")}, ensure_ascii=False).encode() + b"\n")
        else:
            stream.write(document)
