"""Blocks of text through the model and context mixing together: one long document each, coded along its bytes.

A payload is a header, then one range-coded stream: line ends that are no line feeds (`codec.edits.line_ends`), tokens
(`codec.cm.tokens`) and what the tokenizer lost (`codec.edits.coder`). The header is a varint 2 n + c, where n is the
size of the block less that of the tokens' bytes (zigzag), and c tells that a varint with the number of line ends
follows. Recall has no part in it: the match model of context mixing knows all that a text says again.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from codec.cm import vocabulary
from codec.cm.tokens import encode_tokens, new_tokens, room
from codec.cm.vocabulary import Vocabulary
from codec.console import Advance, ignore_progress
from codec.devices import thread_pool
from codec.edits import coder as patch
from codec.edits import line_ends
from codec.entropy import range_coder
from codec.errors import FormatError
from codec.exact.backend import Backend, Integers
from codec.exact.chunks import BAND_UNIT
from codec.model.tokenizer import BOS, Tokenizer


MOST_TOKENS = 2
"""For each byte of a block or of its tokens: a token without bytes, a mark of capitals, has a letter behind it."""

_SPARE_TOKENS = 64
_MOST_BYTES = 16  # of tokens for each byte of a block: normalisation makes 33 bytes of one character of 3 (U+FDFA)
_CHUNK = 512  # tokens of each block whose distributions are in memory: 8 MiB of a vocabulary of 2,048
_SIDE_BY_SIDE = {"cpu": 2, "cuda": 64}  # blocks that are encoded together
_HOPELESS_EDITS = 4  # a block of which every 4th byte must be edited is not for the model
_INVALID = re.compile("([\udc80-\udcff]+)")


@dataclass(frozen=True)
class Header:
    """What a payload says before its stream."""

    canonical: int  # bytes of the tokens
    lines: int  # line ends that are coded
    end: int  # bytes that the header takes


@dataclass(frozen=True)
class _Prepared:
    """A block ready for the model."""

    size: int
    text: bytes  # with line feeds only
    kinds: NDArray[np.uint8]
    canonical: bytes
    tokens: Integers
    edits: patch.Edits


@dataclass(frozen=True)
class Mixing:
    """A model on a device, and its vocabulary in the order of bytes."""

    backend: Backend
    tokenizer: Tokenizer
    window: int
    threads: int
    kind: str  # of the device: cpu or cuda

    @cached_property
    def order(self) -> Integers:
        """Token ids by rank, int64 [V]."""
        return vocabulary.sort(self.tokenizer.token_bytes).tokens.astype(np.int64)

    @cached_property
    def ranks(self) -> Integers:
        """Ranks by token id, int64 [V]."""
        return np.argsort(self.order)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary whose ids are ranks: distributions come in its order."""
        return vocabulary.sort([self.tokenizer.token_bytes[n] for n in self.order.tolist()])

    def encode(self, blocks: Sequence[bytes], advance: Advance = ignore_progress) -> list[bytes | None]:
        """The payload of each block; None for one that is not for the model. `advance` is told bytes."""
        prepared = [_prepare(block, self.tokenizer) for block in blocks]
        found: list[bytes | None] = [None] * len(blocks)
        order = sorted((n for n, p in enumerate(prepared) if p), key=lambda n: -len(prepared[n].tokens))
        with thread_pool(self.threads) as pool:
            for at in range(0, len(order), _SIDE_BY_SIDE[self.kind]):
                numbers = order[at : at + _SIDE_BY_SIDE[self.kind]]
                together = [_Encoder(self, prepared[n]) for n in numbers]
                before: list[Future[None]] = []
                for encoders, parts in self._distributions(together):
                    for future in before:
                        future.result()
                    before = [pool.submit(e.take, part) for e, part in zip(encoders, parts, strict=True)]
                    advance(sum(e.size * len(part) / len(e.ranks) for e, part in zip(encoders, parts, strict=True)))
                for future in before:
                    future.result()
                for n, encoder in zip(numbers, together, strict=True):
                    found[n] = encoder.finish()
        return found

    def _distributions(self, blocks: list["_Encoder"]) -> Iterator[tuple[list["_Encoder"], list[Integers]]]:
        """Blocks, the longest first, and the distributions of their next tokens; the rest of them follow in turn."""
        size = min(_CHUNK, -(-self.window // BAND_UNIT) * BAND_UNIT)
        past, longest = self.backend.past(len(blocks), self.window), len(blocks[0].ranks)
        for at in range(0, longest, size):
            running = [block for block in blocks if len(block.ranks) > at]
            inputs = [block.inputs[at : at + size] for block in running]
            sums = self.backend.ordered_sums(inputs, self.order, past)()
            yield running, np.split(sums, np.cumsum([len(part) for part in inputs])[:-1])


class _Encoder:
    """A block being encoded."""

    def __init__(self, mixing: Mixing, block: _Prepared):
        self._mixing, self._block, self.size = mixing, block, block.size
        self.inputs, self.ranks = np.concatenate(([BOS], block.tokens[:-1])), mixing.ranks[block.tokens]
        self._stream, self._state, self._done = new_tokens(len(block.canonical)), range_coder.new_encoder(), 0
        self._out = np.zeros(line_ends.room(len(block.kinds)) + 64, np.uint8)
        self._sums = np.zeros(len(mixing.order) + 1, np.int64)
        line_ends.code(self._state, self._out, block.kinds, False)

    def _reserve(self, count: int) -> None:
        lacking = int(self._state[2]) + count + 64 - len(self._out)
        if lacking > 0:
            self._out = np.concatenate((self._out, np.zeros(lacking + len(self._out), np.uint8)))

    def take(self, sums: Integers) -> None:
        """Code the next tokens, whose distributions these are."""
        ranks = self.ranks[self._done : self._done + len(sums)]
        self._reserve(len(ranks) * room(self._mixing.vocabulary))
        encode_tokens(self._stream, self._mixing.vocabulary, self._state, self._out, sums, ranks, self._sums)
        self._done += len(ranks)

    def finish(self) -> bytes:
        """The payload."""
        block = self._block
        canonical, text = (np.frombuffer(b, np.uint8) for b in (block.canonical, block.text))
        self._reserve(patch.edits_capacity(canonical, block.edits))
        patch.put_edits(self._state, self._out, canonical, text, block.edits, self._mixing.tokenizer.lossy)
        missing = block.size - len(block.canonical)
        head = _varint(2 * (2 * missing if missing >= 0 else -2 * missing - 1) + (len(block.kinds) > 0))
        head += _varint(len(block.kinds)) if len(block.kinds) else b""
        return head + self._out[: range_coder.finish(self._state, self._out)].tobytes()


def _prepare(data: bytes, tokenizer: Tokenizer) -> _Prepared | None:
    """None for a block that is not for the model: most of it is no text, or it is empty."""
    text, kinds = line_ends.split(data)
    tokens = tokens_of(text, tokenizer)
    lengths = tokenizer.token_lengths[tokens]
    tokens = tokens[: len(tokens) - int((lengths[::-1] > 0).argmax())] if lengths.any() else tokens[:0]
    canonical, edits = tokenizer.decode(tokens), np.zeros((0, 4), np.int64)
    if not len(tokens) or len(tokens) > most_tokens(len(data), len(canonical)):
        return None
    if canonical != text:
        edits = patch.align(np.frombuffer(canonical, np.uint8), np.frombuffer(text, np.uint8))
    if int(edits[:, 3].sum()) * _HOPELESS_EDITS > len(text) or len(canonical) > _most_bytes(len(data)):
        return None
    return _Prepared(len(data), text, kinds, canonical, tokens, edits)


def tokens_of(text: bytes, tokenizer: Tokenizer) -> Integers:
    """Token ids [T] of a text; where the tokenizer can, bytes that are no UTF-8 are single tokens and not lost."""
    single = {piece[0]: n for n, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1 and piece[0] >= 128}
    if tokenizer.lossy or len(single) < 128:
        return tokenizer.encode(text).astype(np.int64)
    parts = []
    for n, part in enumerate(_INVALID.split(text.decode("utf-8", "surrogateescape"))):
        data = part.encode("utf-8", "surrogateescape")
        parts.append(np.array([single[byte] for byte in data], np.int64) if n % 2 else tokenizer.encode(data))
    return np.concatenate(parts).astype(np.int64)


def most_tokens(size: int, canonical: int) -> int:
    """The most tokens that a block of so many bytes, and so many bytes of tokens, may have."""
    return MOST_TOKENS * max(size, canonical) + _SPARE_TOKENS


def _most_bytes(size: int) -> int:
    return _MOST_BYTES * (size + 1)


def read_header(payload: bytes, size: int) -> Header:
    """The header of a payload of a block of `size` bytes. Raises FormatError for one that no block has."""
    value, at = _read_varint(payload, 0)
    missing = value >> 2 if value & 2 == 0 else -(value >> 2) - 1
    lines, at = _read_varint(payload, at) if value & 1 else (0, at)
    if not 0 < size - missing <= _most_bytes(size) or lines > size:
        raise FormatError(
            f"block of {size} bytes: tokens of {size - missing} bytes and {lines} line ends; the archive is damaged"
        )
    return Header(size - missing, lines, at)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint of at most 35 bits, and where it ends."""
    value = 0
    for n, byte in enumerate(data[at : at + 5]):
        value |= (byte & 127) << (7 * n)
        if byte < 128:
            return value, at + n + 1
    raise FormatError(f"block: its header of {len(data)} bytes ends in a number; the archive is damaged")
