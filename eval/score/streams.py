"""What is to be scored, as one stream of tokens: every document is BOS and its tokens, as in the challenge's shards."""

import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.console import Advance, ignore_progress
from codec.errors import FormatError
from codec.model.byte_pairs import AnyTokenizer
from codec.model.tokenizer import BOS
from trainer.data.documents import document_files, input_bytes, read_documents
from trainer.data.shards import check_vocabulary, find_shards, read_shard

MAX_SHARD_BYTES = 1 << 30
"""Of an unpacked `.bin.xz`; the challenge's shards have 200 MB."""

BLOCK_BYTES = 1 << 20

COMPRESSED_SHARD = ".bin.xz"


def token_stream(
    path: str | Path, tokenizer: AnyTokenizer, enough: int | None = None, advance: Advance = ignore_progress
) -> NDArray[np.integer]:
    """The tokens of text or of token shards, uint16 [N].

    Args:
        path: what `trainer.data.documents.read_documents` reads as text; or a shard, `.bin` or `.bin.xz`, whose tokens
            are taken as they are; or a folder with the shards of a validation split.
        enough: stop once there are so many tokens.
        advance: told the bytes of the files that have been read; in all they are `stream_bytes(path)`.

    Raises:
        FormatError: unreadable or not what its name says.
        MismatchError: a shard has a token that `tokenizer` has not.
    """
    parts: list[NDArray[np.integer]] = []
    total = 0
    for part in _parts(Path(path), tokenizer, advance):
        parts.append(part if enough is None else part[: enough - total])
        total += len(parts[-1])
        if total == enough:
            break
    stream = np.concatenate(parts) if parts else np.empty(0, np.uint16)
    check_vocabulary(stream, tokenizer.vocab_size, str(path))
    return stream


def stream_bytes(path: str | Path) -> int:
    """The size on disk of what `token_stream(path)` reads."""
    return Path(path).stat().st_size if _is_compressed_shard(Path(path)) else input_bytes(path)


def documents_of(stream: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """The documents of a stream, without BOS; what precedes the first BOS is a document too.

    >>> [document.tolist() for document in documents_of(np.array([7, 1, 8, 9, 1, 1, 7], np.uint16))]
    [[7], [8, 9], [], [7]]
    """
    pieces = np.split(stream, np.flatnonzero(stream == BOS))
    return [*([pieces[0]] if len(pieces[0]) else []), *(piece[1:] for piece in pieces[1:])]


def _is_compressed_shard(path: Path) -> bool:
    return path.is_file() and path.name.endswith(COMPRESSED_SHARD)


def _parts(path: Path, tokenizer: AnyTokenizer, advance: Advance) -> Iterator[NDArray[np.integer]]:
    if _is_compressed_shard(path):
        yield _unpacked(path)
    elif any(file.suffix == ".bin" for file in document_files(path)):
        for shard in [path] if path.is_file() else find_shards(path, "val"):
            yield read_shard(shard)
    else:
        for document in read_documents(path, advance=advance):
            yield np.concatenate(([np.uint16(BOS)], tokenizer.encode(document)))


def _unpacked(path: Path) -> NDArray[np.integer]:
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / path.name.removesuffix(".xz")
        try:
            with lzma.open(path) as source, shard.open("wb") as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
                    if target.tell() > MAX_SHARD_BYTES:
                        raise FormatError(f"{path}: unpacks to over {MAX_SHARD_BYTES:,} bytes; pass a smaller shard")
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise FormatError(f"{path}: cannot be unpacked ({error}); make or download it again") from error
        try:
            return np.array(read_shard(shard))
        except FormatError as error:
            raise FormatError(f"{path}, unpacked: {error}") from error
