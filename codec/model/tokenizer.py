"""SentencePiece models: text to token ids, and token ids to the exact bytes they stand for.

Decoding never calls SentencePiece: a token has fixed bytes (its piece with U+2581 read as a space, or one raw byte),
and a document's *canonical* bytes are their concatenation. `codec.edits.coder` codes what a normalising tokenizer
loses.

A model may be a model of folded text (`codec.model.capitals`). Its tokens then stand for folded text, and the canonical
bytes are the concatenation unfolded. The last bytes of the model file say so; SentencePiece reads them as the name of
its normalizer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.model.capitals import count_text, fold, unfold
from codec.numerics.runs import runs

BOS = 1
"""Id of the token that begins a document, in the challenge's tokenizers and in this project's. The end of a document is
coded as the BOS of the next."""

SPACE = "▁"

FOLDED = b"\x1a\x0f\x0a\x0dfolded text 1"
"""The last bytes of a model of folded text: field 3, normalizer_spec, of 15 bytes with field 1, name, of 13."""

MAX_PIECES = 1 << 16
"""Tokens of a model: their ids have 16 bits."""

_SAMPLE = "One\n\ntwo\t three  four… ".encode()


@dataclass(frozen=True)
class Pieces:
    """The bytes of all tokens, one token behind the other."""

    text: NDArray[np.uint8]
    begins: NDArray[np.int64]  # [V], in `text`
    lengths: NDArray[np.int64]  # [V]

    @classmethod
    def of(cls, token_bytes: Sequence[bytes]) -> "Pieces":
        """Make the table of the bytes of each token id."""
        lengths = np.array([len(piece) for piece in token_bytes], np.int64)
        return cls(np.frombuffer(b"".join(token_bytes), np.uint8), lengths.cumsum() - lengths, lengths)

    def join(self, tokens: NDArray[np.integer]) -> bytes:
        """Return the bytes of token ids [T], one behind the other.

        By numpy, 830 tokens take 34 microseconds of one core, where a list of their bytes took 48.

        Raises:
            FormatError: an id that the tokenizer does not have.
        """
        count = len(self.lengths)
        if not tokens.size:
            return b""
        if not 0 <= tokens.min() <= tokens.max() < count:
            raise FormatError(f"token ids {tokens.min()} to {tokens.max()}: the tokenizer has 0 to {count - 1}")
        lengths = self.lengths[tokens]
        return self.text[runs(self.begins[tokens], lengths)].tobytes()


class Tokenizer:
    """A SentencePiece model and the bytes its tokens stand for.

    Args:
        model: the serialized SentencePiece model (the content of a `.model` file).

    Raises:
        FormatError: `model` is not a SentencePiece model, its BOS is not id 1, or it has over 65,536 pieces.
    """

    def __init__(self, model: bytes):
        self.model = bytes(model)
        if _pieces(self.model) > MAX_PIECES:
            raise FormatError(f"tokenizer: more than {MAX_PIECES:,} pieces")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = self._processor.LoadFromSerializedProto(self.model)
        except (RuntimeError, UnicodeDecodeError) as error:  # SentencePiece may quote bytes of the file
            raise FormatError(f"tokenizer: {len(self.model)} bytes are not a SentencePiece model ({error})") from error
        if not loaded:
            raise FormatError(f"tokenizer: {len(self.model)} bytes are not a SentencePiece model")
        if self._processor.bos_id() != BOS:
            raise FormatError(
                f"tokenizer: BOS has id {self._processor.bos_id()}, expected {BOS}; "
                "make one with `underpar tokenizer train`"
            )

    begin = end = BOS
    """The tokens before and behind a document."""

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens."""
        return self._processor.vocab_size()

    @cached_property
    def sha256(self) -> str:
        """Return the hex SHA-256 of the serialized model."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def folds(self) -> bool:
        """Return whether tokens stand for folded text."""
        return self.model.endswith(FOLDED)

    @cached_property
    def lossy(self) -> bool:
        """Return whether decoding restores less than the text encoded, for example no line breaks."""
        return self.decode(self.encode(_SAMPLE).astype(np.int64)) != _SAMPLE

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token id, with marks if the tokenizer folds.

        Control and unknown tokens have no bytes.
        """
        return [self._bytes_of(i) for i in range(self.vocab_size)]

    @cached_property
    def token_lengths(self) -> NDArray[np.int64]:
        """Return the number of bytes of text of each token id: int64 [V]."""
        return np.array([self._length(piece) for piece in self.token_bytes], np.int64)

    def _length(self, piece: bytes) -> int:
        return count_text(piece) if self.folds else len(piece)

    def _bytes_of(self, token: int) -> bytes:
        p = self._processor
        if p.IsControl(token) or p.IsUnknown(token) or p.IsUnused(token):
            return b""
        if p.IsByte(token):
            return bytes([int(p.IdToPiece(token)[1:-1], 16)])
        return p.IdToPiece(token).replace(SPACE, " ").encode()

    def encode(self, document: bytes) -> NDArray[np.uint16]:
        """Return the token ids [T] of a document, without BOS; invalid UTF-8 is read as U+FFFD."""
        text = fold(document) if self.folds else document
        ids = self._processor.EncodeAsIds(text.decode("utf-8", errors="replace"))
        return np.array(ids, dtype=np.uint16)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces.of(self.token_bytes)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """Return the canonical bytes of token ids [T].

        Raises:
            FormatError: an id that the tokenizer does not have.
        """
        joined = self._pieces.join(tokens)
        return unfold(joined) if self.folds else joined

    def split(self, tokens: NDArray[np.integer]) -> list[bytes]:
        """Return the part of the canonical bytes for each of token ids [T].

        Raises:
            FormatError: an id that the tokenizer does not have.
        """
        text, ends = self.decode(tokens), np.cumsum(self.token_lengths[tokens]).tolist()
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def challenge_tables(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the byte table of the challenge's accounting, for scores with the policy `flat` alone.

        Returns:
            base [V]: bytes of a piece without one leading U+2581 (an inner U+2581 counts as its 3 UTF-8 bytes) and
                without marks; 0 for control, unknown and unused tokens.
            space [V]: whether the piece begins with U+2581, one byte unless the token before is a boundary.
            boundary [V]: whether the token is control, unknown or unused.
        """
        p = self._processor
        base = np.zeros(self.vocab_size, np.int64)
        space = np.zeros(self.vocab_size, np.bool_)
        boundary = np.ones(self.vocab_size, np.bool_)
        for i in range(self.vocab_size):
            if p.IsControl(i) or p.IsUnknown(i) or p.IsUnused(i):
                continue
            boundary[i] = False
            if p.IsByte(i):
                base[i] = self.token_lengths[i]
                continue
            piece = p.IdToPiece(i)
            space[i] = piece.startswith(SPACE)
            base[i] = self._length(piece.removeprefix(SPACE).encode())
        return base, space, boundary

    def challenge_bytes(self, before: NDArray[np.integer], targets: NDArray[np.integer]) -> int:
        """Return the bytes of targets [...], each after its token in `before` [...], by the challenge's table."""
        base, space, boundary = self.challenge_tables()
        return int(base[targets].sum() + (space[targets] & ~boundary[before]).sum())


def _pieces(model: bytes) -> int:
    """Count the pieces of a serialized model, up to one more than MAX_PIECES, before memory is taken for them.

    A model is a protocol buffer, whose pieces are its fields of number 1. What is none counts as without pieces.
    """
    count = at = 0
    while at < len(model) and count <= MAX_PIECES:
        key, at = _varint(model, at)
        count += key == 1 << 3 | 2
        if key & 7 == 2:
            length, at = _varint(model, at)
            at += length
        else:
            at = _varint(model, at)[1] if key & 7 == 0 else at + {1: 8, 5: 4}.get(key & 7, len(model))
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where the number ends."""
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, at + n + 1
    return value, len(data)
