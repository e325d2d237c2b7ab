"""Documents from files, one after another in bounded memory: JSON Lines, plain text, parquet, token shards, folders."""

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import zstandard

from codec.console import Advance, ignore_progress, notes
from codec.errors import CodecError, FormatError
from codec.model.byte_pairs import AnyTokenizer
from trainer.data.shards import Tokens, blocks, check_tokenizer, check_vocabulary, read_shard

MAX_DOCUMENT_BYTES = 1 << 28
"""Limit on a line, a text file or a document: longer input is refused before it fills the memory."""

ZSTD_CHUNK = 4096
"""Compressed bytes of a read. A zstandard block of 4 bytes can stand for 128 KiB: a read gives at most 128 MiB."""

PARQUET_ROWS = 64

SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".txt", ".parquet", ".bin")


def read_documents(
    path: str | Path, tokenizer: AnyTokenizer | None = None, advance: Advance = ignore_progress
) -> Iterator[bytes]:
    """Yield the documents of a file, or of all files in a folder in the order of their names.

    JSON Lines (plain, .xz, .gz or .zst) and parquet have one document in each `text` field. A .txt file is one
    document, of any bytes. Token shards (.bin) give the canonical bytes of their tokens. The shards of a split in a
    folder are one stream; the tokens before the first that begins one are a document, too.

    Args:
        path: of the file or folder.
        tokenizer: for token shards.
        advance: called with the bytes of the files that have been read; in all they are `input_bytes(path)`.

    Raises:
        FormatError: unreadable, not the kind of its name, or a document over 256 MiB; the message has the line or row.
        MismatchError: a token that `tokenizer` does not have.
        CodecError: no tokenizer for a shard, or parquet without pyarrow.
    """
    for (kind, _), group in groupby(document_files(path), _stream):
        files = list(group)
        if kind == ".bin":
            yield from _shard_documents(files, tokenizer, advance)
            continue
        read = {".txt": _text_file, ".parquet": _parquet_file}.get(kind, _json_lines)
        for file in files:
            yield from read(file, advance)


def document_files(path: str | Path) -> list[Path]:
    """Return `path`, or the document files in that folder and below, in the order of their paths.

    Raises:
        FormatError: no such file, or none of a known kind.
    """
    path = Path(path)
    if path.is_file():
        if not _suffix(path):
            raise FormatError(f"{path}: unknown kind of file; expected a name that ends in {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise FormatError(f"{path}: no such file or folder; pass one that exists")
    files = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) and not _is_hidden(p.relative_to(path)))
    if not files:
        raise FormatError(f"{path}: holds no documents; expected files that end in {', '.join(SUFFIXES)}")
    return files


def input_bytes(path: str | Path) -> int:
    """Return the size of all files that `read_documents(path)` reads, as they are on disk."""
    return sum(file.stat().st_size for file in document_files(path))


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _is_hidden(path: Path) -> bool:
    # Some challenge entries have shards of bytes per token, which are no tokens.
    return any(part.startswith(".") for part in path.parts) or "_bytes_" in path.name


def _stream(path: Path) -> tuple[str, str]:
    """Return what files of one stream share: their kind and, for shards, the name without its number."""
    kind = _suffix(path)
    return kind, re.sub(r"\d+\.bin$", "", str(path)) if kind == ".bin" else ""


class _ZstdFile(io.RawIOBase):
    """A reader of zstandard frames that, unlike the library's own, raises EOFError on a truncated last frame."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            self._input = self._input or self._file.read(ZSTD_CHUNK)
            if not self._input and self._frame is None:
                return 0
            if not self._input:
                raise EOFError("the file ended inside a zstandard frame")
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output, self._input = memoryview(self._frame.decompress(self._input)), b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".jsonl.xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    if suffix == ".jsonl.gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if suffix == ".jsonl.zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(file)))
    return file


def _json_lines(path: Path, advance: Advance) -> Iterator[bytes]:
    number, seen = 0, 0
    try:
        with path.open("rb") as file:
            lines = _decompressed(file, _suffix(path))
            while line := lines.readline(MAX_DOCUMENT_BYTES + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise FormatError(f"{where}: over {MAX_DOCUMENT_BYTES:,} bytes; split the document")
                advance(file.tell() - seen)
                seen = file.tell()
                if line.strip():
                    yield _text_of(line, where)
            advance(file.tell() - seen)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise FormatError(
            f"{path}, after line {number}: cannot be read ({error}); make or download it again"
        ) from error


def _text_of(line: bytes, where: str) -> bytes:
    expected = 'expected an object {"text": "..."}'
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error}); {expected}") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        found = f"fields {', '.join(sorted(value))[:200]}" if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{where}: found {found}, {expected}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: the text has half of a surrogate pair at character {error.start}") from error


def _text_file(path: Path, advance: Advance) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}; pass a readable file") from error
    if len(text) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{path}: over {MAX_DOCUMENT_BYTES:,} bytes are one document; split it into several files")
    advance(len(text))
    yield text


def _parquet_file(path: Path, advance: Advance) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise CodecError(f"{path}: reading parquet needs pyarrow; `pip install 'underpar[parquet]'`") from error
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            kind = file.schema_arrow.field("text").type if "text" in names else None
            if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                found = f"columns {', '.join(names)[:200]}" if kind is None else f"a `text` column of {kind}"
                raise FormatError(f"{path}: found {found}, expected a `text` column of strings")
            size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(PARQUET_ROWS, columns=["text"]):
                for text in batch.column(0).cast(pa.large_binary()).to_pylist():
                    row += 1
                    if text is None:
                        raise FormatError(f"{path}, row {row}: the text is null; remove the row")
                    advance(size / rows)
                    yield text
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}, after row {row}: unreadable ({error}); make or download it again") from error


def _shard_documents(paths: list[Path], tokenizer: AnyTokenizer | None, advance: Advance) -> Iterator[bytes]:
    if tokenizer is None:
        raise CodecError(
            f"{paths[0]}: a shard is text only with its own tokenizer, and none was given; pass it, or text"
        )
    begun, size = False, 0
    unknown = [path for path in paths if not check_tokenizer(path, tokenizer)]
    if unknown:
        notes.print(f"{unknown[0]}: says of no tokenizer that it made it; taken to be this one")
    parts: list[Tokens] = []
    for path in paths:
        tokens = read_shard(path)
        advance(path.stat().st_size - tokens.nbytes)
        offset = 0
        for block in blocks(tokens):
            check_vocabulary(block, tokenizer.vocab_size, f"shard {path}", offset)
            for piece in np.split(block, np.flatnonzero(block == tokenizer.begin)):
                if begun and len(piece) and piece[0] == tokenizer.begin:
                    yield tokenizer.decode(np.concatenate(parts))
                    size, parts = 0, []
                begun = begun or len(piece) > 0
                size += int(tokenizer.token_lengths[piece].sum())
                if size > MAX_DOCUMENT_BYTES:
                    raise FormatError(
                        f"shard {path}: over {MAX_DOCUMENT_BYTES:,} bytes before token {offset + len(block):,} without "
                        f"the token (id {tokenizer.begin}) that begins a document; was it made with another tokenizer?"
                    )
                parts.append(piece)
            offset += len(block)
            advance(block.nbytes)
    if begun:
        yield tokenizer.decode(np.concatenate(parts))
