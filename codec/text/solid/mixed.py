"""Code blocks of text with a language model and context mixing together, along the bytes of the tokens.

The tokens of a long block are cut into up to SEGMENTS segments of about equally many bytes. Each segment is a document
to the model, so one step of the model predicts a token of every segment. Context mixing codes one token of each segment
in turn, and the segments share what it learns.

A payload is a header, then one range-coded stream: line ends other than line feeds (`codec.edits.line_ends`), the
tokens (`codec.cm.tokens`), one of each segment in turn, and what the tokenizer lost (`codec.edits.coder`). The header
is a varint 2 n + c: n is the size of the block less that of the tokens' bytes (zigzag), and c tells whether a varint
with the number of line ends follows. Then comes for each segment but the first a varint: by how many bytes the segment
begins behind its share of the block.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numba.typed import List
from numpy.typing import NDArray

from codec.cm import vocabulary
from codec.cm.state import LINE, LINE1, PLACE, Stream
from codec.cm.tokens import Cuts, code_token, cuts, new_tokens, room
from codec.cm.vocabulary import Vocabulary
from codec.compiled import making
from codec.console import Advance, ignore_progress
from codec.devices import thread_pool
from codec.edits import coder as patch
from codec.edits import line_ends
from codec.entropy import range_coder
from codec.errors import FormatError
from codec.exact.backend import Backend, Integers
from codec.exact.chunks import CHUNK_UNIT
from codec.model.byte_pairs import AnyTokenizer
from codec.numerics.runs import runs

MOST_TOKENS = 2
"""The most tokens for each byte of a block or of its tokens: a token without bytes, a mark of capitals, has a letter
behind it."""

_SPARE_TOKENS = 64
_MOST_BYTES = 16  # of tokens for each byte of a block: normalisation makes 33 bytes of one character of 3 (U+FDFA)
_CHUNK = 256  # tokens of each segment that the model has at once
_SIDE_BY_SIDE = {"cpu": 2, "cuda": 64}  # blocks that are encoded together
_HOPELESS_EDITS = 4  # a block of which every 4th byte must be edited is not for the model
_INVALID = re.compile("([\udc80-\udcff]+)")


SEGMENTS, SEGMENT_BYTES = 8, 1 << 14
"""The most segments of a block, and the least bytes of each segment where there are several. Alice in Wonderland takes
30,649 bytes in one segment, 30,835 in 4 and 30,864 in 8."""


@dataclass(frozen=True)
class Header:
    """The sizes that a payload states before its stream."""

    begins: tuple[int, ...]  # where the tokens' bytes of each segment begin, and those of the last end
    lines: int  # line ends that are coded
    end: int  # bytes that the header takes

    @property
    def canonical(self) -> int:
        """Return the bytes of the tokens."""
        return self.begins[-1]


@dataclass(frozen=True)
class _Prepared:
    """A block ready for the model."""

    size: int
    text: bytes  # with line feeds only
    kinds: NDArray[np.uint8]
    canonical: bytes
    tokens: Integers
    edits: patch.Edits


class _Chunk(NamedTuple):
    """Sums of the next tokens of segments, one segment behind the other."""

    sums: Integers  # [K], at the tokens' cuts
    columns: Integers  # [K]: the cuts
    begins: Integers  # [N + 1], where those of each token begin


class Mixed(NamedTuple):
    """A block coded with the model."""

    data: bytes
    tokens: int


_Rows = tuple[Integers, Integers]
"""For each segment of a block, its first row among the distributions, and its number of rows."""


@dataclass(frozen=True)
class Mixing:
    """A model on a device, and its vocabulary in the order of bytes."""

    backend: Backend
    tokenizer: AnyTokenizer
    symbols: int  # of the model: as many as the tokenizer has tokens, or more
    window: int
    threads: int
    kind: str  # of the device: cpu or cuda

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the tokens in the order of their bytes, which is that of distributions here."""
        return vocabulary.sort(self.tokenizer.token_bytes)

    @cached_property
    def order(self) -> Integers:
        """Return the symbol of each rank, int64 [V]: tokens in the order of their bytes, then symbols without token."""
        tokens = self.vocabulary.tokens.astype(np.int64)
        return np.concatenate((tokens, np.arange(len(tokens), self.symbols)))

    @cached_property
    def cuts(self) -> Cuts:
        """Return where the sums are that the coding of each token depends on."""
        return cuts(self.vocabulary)

    def encode(self, blocks: Sequence[bytes], advance: Advance = ignore_progress) -> list[Mixed | None]:
        """Return the payload of each block; None for a block that is not for the model.

        `advance` is called with bytes of text.
        """
        prepared = [_prepare(block, self.tokenizer) for block in blocks]
        found: list[Mixed | None] = [None] * len(blocks)
        ready = {n: p for n, p in enumerate(prepared) if p}
        numbers = list(ready)
        with thread_pool(self.threads) as pool:
            for at in range(0, len(numbers), _SIDE_BY_SIDE[self.kind]):
                part = numbers[at : at + _SIDE_BY_SIDE[self.kind]]
                encoders = [_Encoder(self, ready[n]) for n in part]
                before: list[Future[None]] = []
                for chunk, parts in self._distributions(encoders):
                    for future in before:
                        future.result()
                    before = [pool.submit(encoders[n].take, chunk, *found) for n, found in parts.items()]
                    advance(sum(encoders[n].bytes_of(counts.sum()) for n, (_, counts) in parts.items()))
                for future in before:
                    future.result()
                for n, encoder in zip(part, encoders, strict=True):
                    found[n] = Mixed(encoder.finish(), len(ready[n].tokens))
        return found

    def _distributions(self, blocks: "list[_Encoder]") -> Iterator[tuple[_Chunk, dict[int, _Rows]]]:
        """Yield sums of the next tokens of all segments, and the rows of each block."""
        size = gcd(_CHUNK, -(-self.window // CHUNK_UNIT) * CHUNK_UNIT)  # no chunk has parts of two windows
        segments = [(n, k, segment) for n, block in enumerate(blocks) for k, segment in enumerate(block.inputs)]
        segments.sort(key=lambda found: -len(found[2]))  # those that end are the last of the model's documents
        past = self.backend.past(len(segments), self.window)
        for at in range(0, len(segments[0][2]), size):
            running = [(n, k, segment[at : at + size]) for n, k, segment in segments if len(segment) > at]
            parts: dict[int, tuple[Integers, Integers]] = {}
            ranks, begin = [], 0
            for n, k, segment in running:
                none = np.zeros((2, len(blocks[n].inputs)), np.int64)
                begins, counts = parts.setdefault(n, (none[0], none[1]))
                begins[k], counts[k] = begin, len(segment)
                ranks.append(blocks[n].ranks(k, at, len(segment)))
                begin += len(segment)
            columns, begins = _cuts_of(self.cuts, np.concatenate(ranks))
            wanted = np.stack((np.repeat(np.arange(begin), np.diff(begins)), columns))
            sums = self.backend.ordered_sums([segment for _, _, segment in running], self.order, past, wanted)()
            yield _Chunk(sums, columns, begins), parts


def _cuts_of(found: Cuts, ranks: Integers) -> tuple[Integers, Integers]:
    """Return the cuts of tokens [n] one behind the other, and where the cuts of each token begin, [n + 1]."""
    counts = (found.begins[1:] - found.begins[:-1])[ranks]
    at = runs(found.begins[ranks], counts)
    return found.ranks[at].astype(np.int64), np.concatenate(([0], counts.cumsum()))


@making
def first_of(item):
    """Return a typed list with one item."""
    items = List()
    items.append(item)
    return items


@making
def put_item(items, at, item):
    """Put an item into a typed list, in the place of another or behind the last."""
    if at < len(items):
        items[at] = item
    else:
        items.append(item)


def segment_streams(begins: Sequence[int]) -> list[Stream]:
    """Make a context-mixing stream for each segment, where the segment begins; all streams share what they learn."""
    whole, streams = new_tokens(begins[-1]), []
    for begin in begins[:-1]:
        own = {name: getattr(whole, name).copy() for name in ("registers", "hashes", "slots", "inputs", "sets", "sums")}
        own["registers"][[PLACE, LINE, LINE1]] = begin
        streams.append(whole._replace(**own))
    return streams


@making
def _encode(streams, v, state, out, chunk, begins, ranks, places, counts, scratch):
    """Encode the next tokens of segments, one of each in turn.

    Args:
        streams: a typed list of `codec.cm.state.Stream`, one for each segment.
        v: the Vocabulary.
        state: of the range coder.
        out: uint8, the code.
        chunk: a `_Chunk`.
        begins: int64 [segments], the first token of each segment in `chunk`.
        ranks: int64 [T], the tokens of the block.
        places: int64 [segments], the next token of each segment in `ranks`.
        counts: int64 [segments], how many tokens of each segment to encode.
        scratch: int64 [V + 1], the sums that are known.
    """
    for t in range(counts.max()):
        for k in range(len(streams)):
            if t < counts[k]:
                n = begins[k] + t
                for i in range(chunk.begins[n], chunk.begins[n + 1]):
                    scratch[chunk.columns[i]] = chunk.sums[i]
                code_token(streams[k], v, state, out, scratch, ranks[places[k] + t], False)


class _Encoder:
    """A block being encoded."""

    def __init__(self, mixing: Mixing, block: _Prepared):
        self._mixing, self._block = mixing, block
        lengths = mixing.tokenizer.token_lengths[block.tokens]
        ends = np.concatenate(([0], lengths.cumsum()))
        segments = segment_count(len(block.canonical))
        shares = [len(block.canonical) * k // segments for k in range(1, segments)]
        firsts = np.array([0, *np.searchsorted(ends, shares), len(lengths)])
        self._begins = ends[firsts].tolist()
        self._slack = [begin - share for begin, share in zip(self._begins[1:-1], shares, strict=True)]
        self.inputs = [np.concatenate(([mixing.tokenizer.begin], block.tokens[a : b - 1])) for a, b in pairwise(firsts)]
        self._firsts, self._places = firsts, firsts[:-1].copy()
        self._ranks = mixing.vocabulary.ranks[block.tokens].astype(np.int64)
        self._state, self._out = range_coder.new_encoder(), np.zeros(line_ends.room(len(block.kinds)) + 64, np.uint8)
        self._scratch = np.zeros(len(mixing.order) + 1, np.int64)
        self._streams: Any = None
        for k, stream in enumerate(segment_streams(self._begins)):
            if k:
                put_item(self._streams, k, stream)
            else:
                self._streams = first_of(stream)
        line_ends.code(self._state, self._out, block.kinds, False)

    def bytes_of(self, tokens: int) -> float:
        """Return about how many bytes of the block so many tokens are."""
        return self._block.size * tokens / len(self._ranks)

    def ranks(self, segment: int, begin: int, count: int) -> Integers:
        """Return the ranks of `count` tokens of a segment, from the segment's token `begin` on."""
        at = self._firsts[segment] + begin
        return self._ranks[at : at + count]

    def _reserve(self, count: int) -> None:
        lacking = int(self._state[2]) + count + 64 - len(self._out)
        if lacking > 0:
            self._out = np.concatenate((self._out, np.zeros(lacking + len(self._out), np.uint8)))

    def take(self, chunk: _Chunk, begins: Integers, counts: Integers) -> None:
        """Encode the next `counts` tokens of each segment, whose sums begin at `begins`."""
        v = self._mixing.vocabulary
        self._reserve(int(counts.sum()) * room(v))
        _encode(
            self._streams, v, self._state, self._out, chunk, begins, self._ranks, self._places, counts, self._scratch
        )
        self._places += counts

    def finish(self) -> bytes:
        """Return the payload."""
        block = self._block
        canonical, text = (np.frombuffer(b, np.uint8) for b in (block.canonical, block.text))
        self._reserve(patch.edits_capacity(canonical, block.edits))
        patch.put_edits(self._state, self._out, canonical, text, block.edits, self._mixing.tokenizer.lossy)
        missing = block.size - len(block.canonical)
        head = _varint(2 * (2 * missing if missing >= 0 else -2 * missing - 1) + (len(block.kinds) > 0))
        head += _varint(len(block.kinds)) if len(block.kinds) else b""
        head += b"".join(map(_varint, self._slack))
        return head + self._out[: range_coder.finish(self._state, self._out)].tobytes()


def _prepare(data: bytes, tokenizer: AnyTokenizer) -> _Prepared | None:
    """Tokenize a block; return None for a block that is not for the model: most of it is no text, or it is empty."""
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


def tokens_of(text: bytes, tokenizer: AnyTokenizer) -> Integers:
    """Return the token ids [T] of a text.

    Where the tokenizer has a token for each byte from 128 on, a byte that is not UTF-8 becomes that token and is not
    lost.
    """
    single = {piece[0]: n for n, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1 and piece[0] >= 128}
    if tokenizer.lossy or len(single) < 128:
        return tokenizer.encode(text).astype(np.int64)
    parts = []
    for n, part in enumerate(_INVALID.split(text.decode("utf-8", "surrogateescape"))):
        data = part.encode("utf-8", "surrogateescape")
        parts.append(np.array([single[byte] for byte in data], np.int64) if n % 2 else tokenizer.encode(data))
    return np.concatenate(parts).astype(np.int64)


def most_tokens(size: int, canonical: int) -> int:
    """Return the most tokens of a block of `size` bytes whose tokens have `canonical` bytes."""
    return MOST_TOKENS * max(size, canonical) + _SPARE_TOKENS


def _most_bytes(size: int) -> int:
    return _MOST_BYTES * (size + 1)


def read_header(payload: bytes, size: int) -> Header:
    """Read the header of a payload of a block of `size` bytes. Raises FormatError for a header that no block has."""
    value, at = _read_varint(payload, 0)
    missing = value >> 2 if value & 2 == 0 else -(value >> 2) - 1
    lines, at = _read_varint(payload, at) if value & 1 else (0, at)
    canonical = size - missing
    if not 0 < canonical <= _most_bytes(size) or lines > size:
        raise FormatError(
            f"block of {size} bytes: tokens of {canonical} bytes and {lines} line ends; the archive is damaged"
        )
    begins, segments = [0], segment_count(canonical)
    for k in range(1, segments):
        slack, at = _read_varint(payload, at)
        begins.append(canonical * k // segments + slack)
    begins.append(canonical)
    if any(a >= b for a, b in pairwise(begins)):
        raise FormatError(f"block of {size} bytes: its segments begin at {begins}; the archive is damaged")
    return Header(tuple(begins), lines, at)


def segment_count(canonical: int) -> int:
    """Return how many segments a block has whose tokens have `canonical` bytes."""
    return min(max(canonical // SEGMENT_BYTES, 1), SEGMENTS)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a varint of at most 35 bits; return its value and where it ends."""
    value = 0
    for n, byte in enumerate(data[at : at + 5]):
        value |= (byte & 127) << (7 * n)
        if byte < 128:
            return value, at + n + 1
    raise FormatError(f"block: its header of {len(data)} bytes ends in a number; the archive is damaged")
