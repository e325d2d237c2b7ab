"""What is to be scored, as one stream of tokens: every document is BOS and its tokens, as in the challenge's shards."""

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
from trainer.data.shards import check_tokenizer, check_vocabulary, find_shards, read_shard

MAX_SHARD_BYTES = 1 << 30
"""Of an unpacked `.bin.xz`; the challenge's shards have 200 MB."""

BLOCK_BYTES = 1 << 20

COMPRESSED_SHARD = ".bin.xz"


class Stream(NamedTuple):
    """Tokens, uint16 [N], and the bytes of text that each stands for, int64 [N]."""

    tokens: NDArray[np.uint16]
    sizes: NDArray[np.int64]


def token_stream(
    path: str | Path, tokenizer: AnyTokenizer, enough: int | None = None, advance: Advance = ignore_progress
) -> NDArray[np.uint16]:
    """The tokens of `measured_stream`."""
    return measured_stream(path, tokenizer, enough, advance).tokens


def spans(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The bytes of a document that each of its tokens stands for, int64 [T].

    A token that stands for `lengths` [T] bytes does not stand for more of a document than is left of its `size`: what
    is no UTF-8 has three bytes for each of its own in canonical text, and a normalising tokenizer may write more.

    >>> spans(np.array([3, 3, 3]), 4).tolist()
    [3, 1, 0]
    """
    return np.diff(np.minimum(np.cumsum(lengths), size), prepend=0)


def measured_stream(
    path: str | Path, tokenizer: AnyTokenizer, enough: int | None = None, advance: Advance = ignore_progress
) -> Stream:
    """Read the tokens of text or of token shards, and the bytes of the text that they stand for.

    Args:
        path: what `trainer.data.documents.read_documents` reads as text; or a shard, `.bin` or `.bin.xz`, whose tokens
            are taken as they are; or a folder with the shards of a validation split.
        enough: stop once there are so many tokens.
        advance: told the bytes of the files that have been read; in all they are `stream_bytes(path)`.

    Raises:
        FormatError: unreadable or not what its name says.
        MismatchError: a shard was made with another tokenizer, or has a token that `tokenizer` has not.
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
    """The size on disk of what `token_stream(path)` reads."""
    return Path(path).stat().st_size if _is_compressed_shard(Path(path)) else input_bytes(path)


def documents_of(stream: NDArray[np.uint16], values: NDArray[Any] | None = None) -> list[NDArray[Any]]:
    """Cut a stream, or `values` of its tokens, into documents without BOS; what precedes the first BOS is one too.

    >>> [document.tolist() for document in documents_of(np.array([7, 1, 8, 9, 1, 1, 7], np.uint16))]
    [[7], [8, 9], [], [7]]
    """
    pieces = np.split(stream if values is None else values, np.flatnonzero(stream == BOS))
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
            tokens = tokenizer.encode(document)
            sizes = np.concatenate(([0], spans(lengths[tokens], len(document))))
            yield Stream(np.concatenate(([np.uint16(BOS)], tokens)), sizes)
    if not checked:
        notes.print(f"{path}: says of no tokenizer that it made it; taken to be this one", soft_wrap=True)


def _measured(tokens: NDArray[np.uint16], tokenizer: AnyTokenizer, path: Path) -> Stream:
    check_vocabulary(tokens, tokenizer.vocab_size, str(path))
    return Stream(tokens, tokenizer.token_lengths[tokens])


def _unpacked(path: Path, tokenizer: AnyTokenizer) -> tuple[NDArray[np.uint16], bool]:
    """The tokens of a compressed shard, and whether the tokenizer that made them could be checked."""
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
