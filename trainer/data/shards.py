"""Token shards, in the challenge's format byte for byte.

A shard is 256 little-endian int32 (20240520, 1, number of tokens, zeros), then that many little-endian uint16 tokens,
then nothing. Version 2 in place of 1 has uint32 tokens, of a vocabulary of over 65,536. Where its maker knows the
tokenizer, the SHA-256 of that is in the header behind the number of tokens; the challenge's own shards have zeros
there, and its scripts do not read so far. A split is a stream of documents, each the tokenizer's first token and its
own, cut into shards of equal length wherever the cut falls.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError, MismatchError
from codec.files import atomic_write, read_bytes
from codec.model.byte_pairs import AnyTokenizer
from codec.model.tokenizer import BOS

MAGIC = 20240520
TYPES: dict[int, Any] = {1: "<u2", 2: "<u4"}
"""What tokens are, by the version of a shard."""

NARROW = 1 << 16
"""Vocabularies up to this size are in shards of version 1, which the challenge's scripts read, too."""

HEADER_BYTES = 1024
TOKENIZER_AT = 12
"""The place in the header of the 32 bytes of the tokenizer's SHA-256."""

TOKENIZER = "tokenizer.model"
"""The tokenizer of the shards in the same folder."""

TOKENS_PER_SHARD = 100_000_000
"""Length of the challenge's shards."""

BLOCK = 1 << 20
"""Tokens of a step in the scan of a whole shard."""

Tokens = NDArray[np.unsignedinteger[Any]]


def write_shard(path: str | Path, tokens: NDArray[np.integer], tokenizer: AnyTokenizer | None = None) -> None:
    """Write tokens [N] as one shard, which says that `tokenizer` made them.

    Raises:
        FormatError: a token is not one of the tokenizer, without one not in 0..65535; or N is over 2^31 - 1.
    """
    version = _version(tokenizer)
    stored = _stored(tokens, version)
    with atomic_write(path) as file:
        file.write(_header(len(tokens), version, tokenizer))
        file.write(stored.tobytes())


def shard_length(path: str | Path) -> int:
    """Return the number of tokens in a shard, after a check of its header and its size.

    Raises:
        FormatError: unreadable, wrong magic or version, truncated or oversized.
    """
    return _read_header(path)[0]


def _read_header(path: str | Path) -> tuple[int, int]:
    """Return the number of tokens of a shard and its version; errors as of `shard_length`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise FormatError(f"shard {path}: {error.strerror}; pass an existing, readable .bin file") from error
    if len(head) < HEADER_BYTES:
        raise FormatError(f"shard {path}: {size} bytes, expected a header of {HEADER_BYTES}; make or download it again")
    magic, version, tokens = np.frombuffer(head, "<i4")[:3].tolist()
    if magic != MAGIC:
        raise FormatError(f"shard {path}: magic number {magic} at byte 0, expected {MAGIC}; this is not a token shard")
    if version not in TYPES:
        raise FormatError(f"shard {path}: version {version} at byte 4, expected 1 or 2; it needs a newer underpar")
    if tokens < 0:
        raise FormatError(f"shard {path}: {tokens} tokens at byte 8, expected at least 0; make or download it again")
    expected = HEADER_BYTES + np.dtype(TYPES[version]).itemsize * tokens
    if size != expected:
        what = "truncated" if size < expected else "oversized"
        raise FormatError(
            f"shard {path}: {what}: {size:,} bytes, but {tokens:,} tokens take {expected:,}; make or download it again"
        )
    return tokens, version


def check_tokenizer(path: str | Path, tokenizer: AnyTokenizer) -> bool:
    """Check that a shard was made with `tokenizer`, by its header or by the tokenizer that lies beside it.

    Returns:
        Whether that could be checked: False of a shard that says nothing, in a folder without a tokenizer.

    Raises:
        MismatchError: it was made with another.
        FormatError: see `shard_length`.
    """
    path = Path(path)
    shard_length(path)
    with path.open("rb") as file:
        file.seek(TOKENIZER_AT)
        made_with = file.read(32).hex()
    if not int(made_with, 16):
        if not (path.parent / TOKENIZER).is_file():
            return False
        made_with = hashlib.sha256(read_bytes(path.parent / TOKENIZER, "tokenizer")).hexdigest()
    if made_with != tokenizer.sha256:
        raise MismatchError(
            f"shard {path}: made with the tokenizer {made_with[:16]}…, this is {tokenizer.sha256[:16]}…; pass the "
            "text, or shards made with this tokenizer"
        )
    return True


def read_shard(path: str | Path, offset: int = 0, count: int | None = None) -> Tokens:
    """Map tokens [count] of a shard.

    Args:
        path: of the shard.
        offset: the first token.
        count: tokens; None: all from `offset` on.

    Raises:
        FormatError: see `shard_length`; or the shard has fewer tokens.
    """
    total, version = _read_header(path)
    kind = np.dtype(TYPES[version])
    count = total - offset if count is None else count
    if offset < 0 or count < 0 or offset + count > total:
        raise FormatError(f"shard {path}: tokens {offset:,} to {offset + count:,} wanted, it has {total:,}")
    if count == 0:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r", HEADER_BYTES + kind.itemsize * offset, (count,))


def find_shards(folder: str | Path, split: str) -> list[Path]:
    """Return the shards of a split (`train` or `val`) in a folder, in order.

    Raises:
        FormatError: there are none.
    """
    # Some challenge entries have shards of bytes per token, which are no tokens.
    paths = sorted(p for p in Path(folder).glob(f"*_{split}_*.bin") if "_bytes_" not in p.name)
    if not paths:
        raise FormatError(
            f"{folder}: no shards *_{split}_*.bin; make them with `underpar data prepare` or `underpar data fetch`"
        )
    return paths


def blocks(tokens: Tokens) -> Iterator[Tokens]:
    """Yield consecutive pieces of at most `BLOCK` tokens."""
    for start in range(0, len(tokens), BLOCK):
        yield tokens[start : start + BLOCK]


@dataclass(frozen=True)
class ShardInfo:
    """The content of a shard: `documents` begin in the shard; `canonical_bytes` is None without a tokenizer."""

    path: Path
    version: int
    tokens: int
    documents: int
    canonical_bytes: int | None


def describe_shard(path: str | Path, tokenizer: AnyTokenizer | None = None) -> ShardInfo:
    """Count a shard's tokens, documents and, given a tokenizer, canonical bytes.

    Raises:
        FormatError: see `shard_length`.
        MismatchError: a token that `tokenizer` does not have.
    """
    tokens = read_shard(path)
    begin = tokenizer.begin if tokenizer else BOS
    documents = sum(int(np.count_nonzero(block == begin)) for block in blocks(tokens))
    canonical = None
    if tokenizer is not None:
        lengths = tokenizer.token_lengths
        canonical = 0
        for i, block in enumerate(blocks(tokens)):
            check_vocabulary(block, tokenizer.vocab_size, f"shard {path}", i * BLOCK)
            canonical += int(lengths[block].sum())
    return ShardInfo(Path(path), _read_header(path)[1], len(tokens), documents, canonical)


def check_vocabulary(tokens: NDArray[np.integer], vocab_size: int, where: str, offset: int = 0) -> None:
    """Check that all tokens [N] are below `vocab_size`.

    Args:
        tokens: [N].
        vocab_size: of the model or tokenizer.
        where: source of the tokens, for the message.
        offset: position of tokens[0] in the source.

    Raises:
        MismatchError: a token is `vocab_size` or more.
    """
    if len(tokens) and int(tokens.max()) >= vocab_size:
        at = int(np.argmax(tokens >= vocab_size))
        raise MismatchError(
            f"{where}: token {int(tokens[at])} at position {offset + at:,}, but the vocabulary has {vocab_size:,}; "
            "use the tokenizer that the shards were made with"
        )


class ShardWriter:
    """A context manager that writes a split, token by token, into `{prefix}_{split}_000000.bin` and so on.

    A shard appears when it is full, the last shard when the block ends. A block that raises leaves the full shards
    behind.

    Attributes:
        paths: the shards that are complete.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str,
        split: str,
        tokens_per_shard: int = TOKENS_PER_SHARD,
        tokenizer: AnyTokenizer | None = None,
    ):
        self._tokenizer, self._version = tokenizer, _version(tokenizer)
        self._name = f"{prefix}_{split}"
        self._folder = Path(folder)
        self._tokens_per_shard = tokens_per_shard
        self._opened: AbstractContextManager[BinaryIO] | None = None
        self._file: BinaryIO | None = None
        self._filled = 0
        self.paths: list[Path] = []

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Add tokens [N] to the stream.

        Raises:
            FormatError: a token is not one of the tokenizer, without one not in 0..65535.
        """
        tokens = _stored(tokens, self._version)
        while len(tokens):
            if self._file is None:
                self._opened = atomic_write(self._path)
                self._file = self._opened.__enter__()
                self._file.write(bytes(HEADER_BYTES))
            part = tokens[: self._tokens_per_shard - self._filled]
            self._file.write(part.tobytes())
            self._filled += len(part)
            tokens = tokens[len(part) :]
            if self._filled == self._tokens_per_shard:
                self._finish()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}_{len(self.paths):06d}.bin"

    def _finish(self) -> None:
        if self._file is None or self._opened is None:
            return
        self._file.seek(0)
        self._file.write(_header(self._filled, self._version, self._tokenizer))
        self._opened.__exit__(None, None, None)
        self.paths.append(self._path)
        self._opened, self._file, self._filled = None, None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        elif self._opened is not None:
            self._opened.__exit__(kind, error, at)


def _header(tokens: int, version: int, tokenizer: AnyTokenizer | None) -> bytes:
    if tokens > np.iinfo(np.int32).max:
        raise FormatError(f"a shard of {tokens:,} tokens, but the format counts to 2^31 - 1; write several")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, version, tokens
    made_with = bytes.fromhex(tokenizer.sha256) if tokenizer else bytes(32)
    return header.tobytes()[:TOKENIZER_AT] + made_with + bytes(HEADER_BYTES - TOKENIZER_AT - 32)


def _version(tokenizer: AnyTokenizer | None) -> int:
    return 2 if tokenizer and tokenizer.vocab_size > NARROW else 1


def _stored(tokens: NDArray[np.integer], version: int) -> Tokens:
    """Return tokens as a shard of a version has them. Raises FormatError for a token that does not fit."""
    kind = np.dtype(TYPES[version])
    most = np.iinfo(kind).max
    if tokens.dtype != kind and len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) > most):
        raise FormatError(f"tokens from {tokens.min()} to {tokens.max()}, but a shard holds 0 to {most}")
    return tokens.astype(kind, copy=False)
