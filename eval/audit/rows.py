"""Lay a text out as an audit codes it: tokens of an alphabet in rows, and the bytes that each row stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.errors import MismatchError
from codec.model.tokenizer import BOS
from eval.score.streams import spans
from eval.score.windows import flat_windows


class Alphabet(Protocol):
    """The vocabulary of a claim: the number of tokens and the bytes that each token stands for."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_bytes(self) -> list[bytes]: ...

    @property
    def token_lengths(self) -> NDArray[np.int64]: ...

    def decode(self, tokens: NDArray[np.integer]) -> bytes: ...

    def encode(self, document: bytes) -> NDArray[np.uint16]: ...


class Bytes260:
    """The challenge's byte tokenizer: pad, BOS, EOS, unknown, then the 256 bytes."""

    vocab_size = 260

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token; empty for the four special tokens."""
        return [b""] * 4 + [bytes([i]) for i in range(256)]

    @cached_property
    def token_lengths(self) -> NDArray[np.int64]:
        """Return the number of bytes of each token, int64 [V]: 1 for a byte, 0 for a special token."""
        return np.array([len(piece) for piece in self.token_bytes], np.int64)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """Decode token ids [T] to bytes."""
        return b"".join([self.token_bytes[token] for token in tokens.tolist()])

    def encode(self, document: bytes) -> NDArray[np.uint16]:
        """Encode a document to token ids [T], without BOS."""
        return np.frombuffer(document, np.uint8).astype(np.uint16) + np.uint16(4)


@dataclass(frozen=True)
class Row:
    """A sequence that is coded as one: a document with its end, or a row of a flat stream."""

    start: int  # the token before, which a decoder knows
    targets: NDArray[np.int64]  # [T]


@dataclass(frozen=True)
class Layout:
    """The way in which a text becomes rows: each document with its end, or a stream in rows of `window` targets."""

    flat: bool
    window: int
    ends_coded: bool  # if False, a decoder must be told the lengths; False for a flat stream: all rows are as long


def stream_of(
    alphabet: Alphabet, documents: Sequence[bytes], tokens: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join documents with a BOS before each, int64 [N]; also return the bytes that each token stands for, int64 [N].

    A document's tokens never stand for more bytes than the document has: the last tokens stand for fewer.
    """
    bos, none = np.array([BOS], np.int64), np.zeros(1, np.int64)
    stream, sizes = [bos[:0]], [none[:0]]
    for document, its in zip(documents, tokens, strict=True):
        stream += [bos, its]
        sizes += [none, spans(alphabet.token_lengths[known_tokens(its, alphabet)], len(document))]
    return np.concatenate(stream), np.concatenate(sizes)


def known_tokens(tokens: NDArray[np.int64], alphabet: Alphabet) -> NDArray[np.int64]:
    """Check that the alphabet has all tokens, and return them. Raises MismatchError for an unknown token."""
    if len(tokens) and int(tokens.max()) >= alphabet.vocab_size:
        raise MismatchError(
            f"claim: token {int(tokens.max())}, but the tokenizer has 0 to {alphabet.vocab_size - 1}; name its own"
        )
    return tokens


def lay(
    layout: Layout, stream: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[list[Row], NDArray[np.int64], int]:
    """Cut a stream into rows; return the rows, their bytes, and the number of targets that are in no row."""
    if layout.flat:
        windows = flat_windows(len(stream), layout.window)
        rows = [Row(int(stream[w.start]), stream[w.start + 1 : w.end + 1]) for w in windows]
        found = [int(sizes[w.start + 1 : w.end + 1].sum()) for w in windows]
    else:
        begins = np.flatnonzero(stream == BOS)
        ends = [*begins[1:], len(stream)][: len(begins)]
        end = np.array([BOS] if layout.ends_coded else [], np.int64)
        rows = [Row(BOS, np.concatenate([stream[a + 1 : b], end])) for a, b in zip(begins, ends, strict=True)]
        found = [int(sizes[a:b].sum()) for a, b in zip(begins, ends, strict=True)]
    held = sum(len(row.targets) for row in rows)
    return rows, np.array(found, np.int64), max(0, len(stream) - 1 - held) if layout.flat else 0
