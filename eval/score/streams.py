"""Read text or token shards as one stream: each document is the token that begins it (BOS), and its tokens."""

import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.console import Advance, ignore_progress, notes
from codec.errors import FormatError
from codec.model.byte_pairs import AnyTokenizer
from codec.model.tokenizer import BOS
from trainer.data.documents import document_files, input_bytes, read_documents
from trainer.data.shards import Tokens, check_tokenizer, check_vocabulary, find_shards, read_shard

MAX_SHARD_BYTES = 1 << 30
"""The most bytes of an unpacked `.bin.xz`; the challenge's shards have 200 MB."""

BLOCK_BYTES = 1 << 20

COMPRESSED_SHARD = ".bin.xz"


class Stream(NamedTuple):
    """Tokens [N], uint16 where the tokenizer's ids fit, and the bytes of text that each stands for, int64 [N]."""

    tokens: NDArray[np.integer]
    sizes: NDArray[np.int64]


def token_stream(
    path: str | Path, tokenizer: AnyTokenizer, enough: int | None = None, advance: Advance = ignore_progress
) -> NDArray[np.integer]:
    """Read the tokens of `measured_stream` [N]."""
    return measured_stream(path, tokenizer, enough, advance).tokens


def spans(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Count the bytes of a document that each of its tokens stands for, int64 [T].

    Canonical text can be longer than the document: a byte that is no UTF-8 becomes three bytes, and a normalising
    tokenizer may write more. Therefore a token counts its length, but never more than the bytes that are left.

    Args:
        lengths: bytes of each token in canonical text [T].
        size: bytes of the document.

    >>> spans(np.array([3, 3, 3]), 4).tolist()
    [3, 1, 0]
    """
    return np.diff(np.minimum(np.cumsum(lengths), size), prepend=0)


def measured_stream(
    path: str | Path, tokenizer: AnyTokenizer, enough: int | None = None, advance: Advance = ignore_progress
) -> Stream:
    """Read the tokens of text or of token shards, and the bytes of the text that they stand for.

    Args:
        path: text in a form that `trainer.data.documents.read_documents` reads; or a shard, `.bin` or `.bin.xz`, whose
            tokens are taken as they are; or a folder with the shards of a validation split.
        tokenizer: encodes the text, or must be the tokenizer of the shards.
        enough: stop once there are so many tokens.
        advance: called with the number of bytes that have just been read from files; the sum is `stream_bytes(path)`.

    Raises:
        FormatError: a file is unreadable or not of the format that its name says.
        MismatchError: a shard was made with another tokenizer, or has a token that `tokenizer` lacks.
    """
    parts = [Stream(np.empty(0, np.uint16), np.empty(0, np.int64))]
    total = 0
    for part in _parts(Path(path), tokenizer, advance):
        left = None if enough is None else enough - total
        parts.append(Stream(part.tokens[:left], part.sizes[:left]))
        total += len(parts[-1].tokens)
        if total == enough:
            break
    return Stream(np.concatenate([part.tokens for part in parts]), np.concatenate([part.sizes for part in parts]))


def stream_bytes(path: str | Path) -> int:
    """Sum the bytes of the files that `token_stream(path)` reads."""
    return Path(path).stat().st_size if _is_compressed_shard(Path(path)) else input_bytes(path)


def documents_of(
    stream: NDArray[np.integer], values: NDArray[Any] | None = None, begin: int = BOS
) -> list[NDArray[Any]]:
    """Cut a stream, or `values` of its tokens, into documents without the token that begins them.

    Tokens before the first such token are a document, too.

    >>> [document.tolist() for document in documents_of(np.array([7, 1, 8, 9, 1, 1, 7], np.uint16))]
    [[7], [8, 9], [], [7]]
    """
    pieces = np.split(stream if values is None else values, np.flatnonzero(stream == begin))
    return [*([pieces[0]] if len(pieces[0]) else []), *(piece[1:] for piece in pieces[1:])]


def _is_compressed_shard(path: Path) -> bool:
    return path.is_file() and path.name.endswith(COMPRESSED_SHARD)


def _parts(path: Path, tokenizer: AnyTokenizer, advance: Advance) -> Iterator[Stream]:
    lengths = tokenizer.token_lengths
    shards = [] if _is_compressed_shard(path) else document_files(path)
    if _is_compressed_shard(path):
        tokens, checked = _unpacked(path, tokenizer)
        yield _measured(tokens, tokenizer, path)
    elif any(file.suffix == ".bin" for file in shards):
        checked = True
        for shard in [path] if path.is_file() else find_shards(path, "val"):
            checked &= check_tokenizer(shard, tokenizer)
            yield _measured(read_shard(shard), tokenizer, shard)
    else:
        checked = True
        for document in read_documents(path, advance=advance):
            own: NDArray[np.integer] = tokenizer.encode(document)
            sizes = np.concatenate(([0], spans(lengths[own], len(document))))
            yield Stream(np.concatenate((np.array([tokenizer.begin], own.dtype), own)), sizes)
    if not checked:
        notes.print(f"{path}: names no tokenizer; the model's tokenizer is assumed")


def _measured(tokens: Tokens, tokenizer: AnyTokenizer, path: Path) -> Stream:
    check_vocabulary(tokens, tokenizer.vocab_size, str(path))
    return Stream(tokens, tokenizer.token_lengths[tokens])


def _unpacked(path: Path, tokenizer: AnyTokenizer) -> tuple[Tokens, bool]:
    """Read the tokens of a compressed shard; the second value is False if the shard names no tokenizer."""
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
            return np.array(read_shard(shard)), check_tokenizer(shard, tokenizer)
        except FormatError as error:
            raise FormatError(f"{path}, unpacked: {error}") from error
