"""SentencePiece models: text to token ids, token ids to the exact bytes they stand for.

Decoding never calls SentencePiece: a token stands for fixed bytes (its piece with U+2581 read as a space, or one raw
byte), and a document's *canonical* bytes are the concatenation. What a normalising tokenizer loses on the way is
`codec.patch`'s business.
"""

import hashlib
from functools import cached_property

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from codec.errors import FormatError

BOS = 1
"""Id of the token that begins a document, in the challenge's tokenizers and ours; coded at a document's end as the
next document's beginning."""

SPACE = "▁"


class Tokenizer:
    """A SentencePiece model and the bytes its tokens stand for.

    Args:
        model: the serialized SentencePiece model (the content of a `.model` file).

    Raises:
        FormatError: `model` is not a SentencePiece model, its BOS is not id 1, or it has over 65,536 pieces.
    """

    def __init__(self, model: bytes):
        self.model = bytes(model)
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
        if self.vocab_size > 1 << 16:
            raise FormatError(f"tokenizer: {self.vocab_size} pieces, expected at most 65,536")

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the serialized model."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes each token id stands for; empty for control and unknown tokens."""
        return [self._bytes_of(i) for i in range(self.vocab_size)]

    def _bytes_of(self, token: int) -> bytes:
        p = self._processor
        if p.IsControl(token) or p.IsUnknown(token) or p.IsUnused(token):
            return b""
        if p.IsByte(token):
            return bytes([int(p.IdToPiece(token)[1:-1], 16)])
        return p.IdToPiece(token).replace(SPACE, " ").encode()

    def encode(self, document: bytes) -> NDArray[np.uint16]:
        """Token ids [T] of a document, without BOS. Invalid UTF-8 is read as U+FFFD."""
        ids = self._processor.EncodeAsIds(document.decode("utf-8", errors="replace"))
        return np.array(ids, dtype=np.uint16)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The canonical bytes of token ids [T]. Raises FormatError for an id that the tokenizer does not have."""
        table = self.token_bytes
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(table):
            raise FormatError(f"token ids {tokens.min()} to {tokens.max()}: the tokenizer has 0 to {len(table) - 1}")
        return b"".join([table[t] for t in tokens.tolist()])

    def challenge_tables(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """The byte table of the challenge's accounting, for `flat` scores alone.

        Returns:
            base [V]: bytes of a piece without one leading U+2581 (an inner one counts as its 3 UTF-8 bytes);
                0 for control, unknown and unused tokens.
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
                base[i] = 1
                continue
            piece = p.IdToPiece(i)
            space[i] = piece.startswith(SPACE)
            base[i] = len(piece.removeprefix(SPACE).encode())
        return base, space, boundary
