"""Decode blocks of `codec.text.solid.mixed` side by side: one step of the model serves many decoding slots.

A slot decodes one segment of a block. Slots are in groups with a thread each, so that the tokens of one group are
decoded while the model steps for another; on a processor each thread has a group. A block that ends makes room for the
next, and larger blocks come first.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.cm.state import Stream
from codec.cm.tokens import decode_token, new_tokens
from codec.compiled import making
from codec.console import Advance, ignore_progress
from codec.devices import thread_pool
from codec.edits import coder as patch
from codec.edits import line_ends
from codec.entropy import range_coder
from codec.errors import FormatError
from codec.exact.backend import Distributions
from codec.text.solid.mixed import (
    SEGMENTS,
    Header,
    Mixing,
    first_of,
    most_tokens,
    put_item,
    read_header,
    segment_streams,
)

_SLOTS = {"cpu": 8, "cuda": 192}
"""Slots of a group: two tiles of a processor's matrix products; on a GPU, as many as keep it busy in two groups."""

_GROUPS = 2  # on a GPU
_TOLD = 1 << 12  # bytes of tokens from which on progress is told: a hundred steps of a group, or so
_STREAM_BYTES = {"cpu": 1 << 30, "cuda": 64 << 30}  # that the streams of all slots may take

TOKEN, PREVIOUS, POSITION, LEFT, DONE = range(5)
"""Columns of `places`, one row for each slot: the token that the model runs next, the token before, its position, the
bytes of tokens still to come, and 1 where the segment has ended."""


class Slot(NamedTuple):
    """The decoder of a segment's tokens. The state and the code belong to the whole block."""

    stream: Stream
    state: NDArray[np.uint64]
    code: NDArray[np.uint8]
    tokens: NDArray[np.int32]  # those decoded so far, and room for the others


@dataclass(frozen=True)
class _Block:
    """A block to decode."""

    number: int
    payload: bytes
    size: int
    header: Header


@dataclass
class _Running:
    """A block being decoded, and the results of its segments so far."""

    block: _Block
    slots: list[int]
    segments: list[Slot]
    kinds: NDArray[np.uint8]  # of line ends


@making
def _decode(slots, which, places, v, lengths, sums):
    """Decode the next token of some slots.

    Args:
        slots: a typed list of `Slot`.
        which: int64 [n], numbers of slots.
        places: int64 [slots, 5], see TOKEN.
        v: the Vocabulary.
        lengths: int64 [V], bytes by token id.
        sums: int64 [n, V + 1], cumulative frequencies for each of `which`.
    """
    for i in range(len(which)):
        at = which[i]
        stream, state, code, tokens = slots[at]
        place = places[at]
        token = v.tokens[decode_token(stream, v, state, code, sums[i])]
        tokens[place[POSITION]] = token
        place[PREVIOUS], place[TOKEN] = place[TOKEN], token
        place[POSITION] += 1
        place[LEFT] -= lengths[token]
        spent = state[2] > np.uint64(len(code) + range_coder.CODE_BYTES)
        place[DONE] = 1 if spent or place[LEFT] <= 0 or place[POSITION] >= len(tokens) else 0


class _Group:
    """Slots that step together, on a thread of their own.

    Args:
        mixing: the model and its vocabulary.
        distributions: the model's distributions for these slots.
        count: how many slots.
        threads: how many decode the slots' tokens.
    """

    def __init__(self, mixing: Mixing, distributions: Distributions, count: int, threads: int):
        self._mixing, self._distributions, self._threads = mixing, distributions, threads
        self._places, self._free = np.zeros((count, 5), np.int64), list(range(count))
        self._active, self._running = np.zeros(count, np.bool_), list[_Running]()
        self._which, self._parts = np.zeros(0, np.int64), list[slice]()  # active slots block by block, and of threads
        self._slots: Any = None  # a numba.typed.List of Slot

    def run(
        self, waiting: "deque[_Block]", found: "SimpleQueue[Any]", stopped: threading.Event, advance: Advance
    ) -> None:
        """Decode blocks until none waits; `advance` is called with bytes of tokens.

        A function that makes the bytes of a decoded block goes into `found`; so does the exception of a failure.
        """
        try:
            with thread_pool(self._threads) as pool:
                done = 0
                while self._fill(waiting) and not stopped.is_set():
                    done += self._step(pool)
                    if done >= _TOLD:
                        advance(done)
                        done = 0
                    if self._places[:, DONE].any():
                        self._end(found)
        except BaseException as error:  # the thread that waits for blocks raises it
            found.put(error)

    def _fill(self, waiting: "deque[_Block]") -> bool:
        """Give idle slots the segments of waiting blocks; return whether any slot has a block."""
        while len(self._free) >= SEGMENTS:
            try:
                block = waiting.popleft()
            except IndexError:  # another group may have taken the last
                break
            running = self._begin(block)
            self._running.append(running)
            self._free = self._free[len(running.segments) :]
            self._order()
        return bool(self._running)

    def _order(self) -> None:
        """List the active slots block by block, and share the blocks among threads: a block's segments take turns."""
        slots = [[n for n in running.slots if self._active[n]] for running in self._running]
        self._which = np.array([n for part in slots for n in part], np.int64)
        ends = np.cumsum([0, *map(len, slots)])
        edges = ends[np.linspace(0, len(slots), min(self._threads, len(slots)) + 1).astype(int)].tolist()
        self._parts = [slice(a, b) for a, b in pairwise(edges)]

    def _begin(self, block: _Block) -> _Running:
        """Put the segments of a block into idle slots, in order, and decode its line ends."""
        head, state = block.header, np.zeros(3, np.uint64)
        code, kinds = np.frombuffer(block.payload, np.uint8, offset=head.end).copy(), np.zeros(head.lines, np.uint8)
        range_coder.start_decoder(state, code)
        line_ends.code(state, code, kinds, True)
        segments, slots = [], self._free[: len(head.begins) - 1]
        for at, stream, (begin, end) in zip(slots, segment_streams(head.begins), pairwise(head.begins), strict=True):
            tokens = np.zeros(most_tokens(block.size, head.canonical), np.int32)
            segments.append(Slot(stream, state, code, tokens))
            if self._slots is None:
                self._slots = first_of(segments[-1])
            else:
                put_item(self._slots, at, segments[-1])
            first = self._mixing.tokenizer.begin
            self._places[at] = first, first, 0, end - begin, 0
        self._active[slots] = True
        return _Running(block, slots, segments, kinds)

    def _end(self, found: "SimpleQueue[Any]") -> None:
        """Idle the slots of ended segments, and hand on the blocks whose segments have all ended."""
        done = self._places[:, DONE] > 0
        self._active[done], self._places[done, DONE] = False, 0
        for running in [r for r in self._running if not self._active[r.slots].any()]:
            counts, left = self._places[running.slots][:, [POSITION, LEFT]].T
            found.put(partial(_finish, self._mixing, running, counts.tolist(), left.tolist()))
            self._free = sorted([*self._free, *running.slots])
            self._running.remove(running)
        self._order()

    def _step(self, pool: ThreadPoolExecutor) -> int:
        """Decode a token in every slot that has a block; return how many bytes the tokens have."""
        m, which = self._mixing, self._which
        before = self._places[which, LEFT].sum()
        tokens, previous, positions = self._places[which, :LEFT].T
        sums = self._distributions.step(which, tokens, previous, positions)
        arguments = self._places, m.vocabulary, m.tokenizer.token_lengths
        jobs = [partial(_decode, self._slots, which[part], *arguments, sums[part]) for part in self._parts]
        others = [pool.submit(job) for job in jobs[1:]]
        jobs[0]()
        for other in others:
            other.result()
        return int(before - self._places[which, LEFT].sum())


def _finish(mixing: Mixing, running: _Running, counts: list[int], left: list[int]) -> tuple[int, bytes]:
    """Return the number and the bytes of a block whose tokens are decoded. Raises FormatError where some are left."""
    block, segment, tokenizer = running.block, running.segments[0], mixing.tokenizer
    if any(left):
        raise FormatError(
            f"block {block.number}: segments of {counts} tokens lack {left} bytes; the archive is damaged or was made "
            "with another pack"
        )
    tokens = np.concatenate([segment.tokens[:count] for segment, count in zip(running.segments, counts, strict=True)])
    canonical = tokenizer.decode(tokens.astype(np.int64))
    text = patch.take_edits(segment.state, segment.code, canonical, tokenizer.lossy, most=block.size)
    data = line_ends.join(text, running.kinds)
    if len(data) != block.size:
        raise FormatError(f"block {block.number} has {len(data)} bytes, expected {block.size}; the archive is damaged")
    return block.number, data


def decode(
    mixing: Mixing, blocks: Mapping[int, tuple[bytes, int]], advance: Advance = ignore_progress
) -> Iterator[tuple[int, bytes]]:
    """Decode blocks, in time and memory that the blocks' sizes bound.

    Args:
        mixing: the model that the blocks were coded with.
        blocks: (payload, size of the block) by number.
        advance: called with bytes of payload, from several threads.

    Yields:
        (number, bytes), in the order in which blocks end.

    Raises:
        FormatError: a payload is not one of a block of its size.
    """
    found: SimpleQueue[Any] = SimpleQueue()
    todo = [_Block(n, payload, size, read_header(payload, size)) for n, (payload, size) in blocks.items()]
    waiting = deque(sorted(todo, key=lambda block: -block.header.canonical))
    if not waiting:
        return
    groups, stopped = _groups(mixing, waiting), threading.Event()
    share = sum(len(block.payload) for block in todo) / sum(block.header.canonical for block in todo)
    with thread_pool(len(groups)) as pool:
        try:
            for group in groups:
                pool.submit(group.run, waiting, found, stopped, lambda done: advance(share * done))
            for _ in todo:
                finish = found.get()
                if isinstance(finish, BaseException):
                    raise finish
                yield finish()
        finally:
            stopped.set()


def _groups(mixing: Mixing, waiting: "deque[_Block]") -> list[_Group]:
    """Make as many groups and slots as pay for the waiting blocks and fit into memory."""
    kind, blocks, segments = mixing.kind, len(waiting), sum(len(block.header.begins) - 1 for block in waiting)
    stream = sum(part.nbytes for part in new_tokens(waiting[0].header.canonical))
    fit = max(1, _STREAM_BYTES[kind] // stream)
    groups = min(mixing.threads if kind == "cpu" else _GROUPS, blocks, fit)
    count = max(SEGMENTS, min(_SLOTS[kind], -(-segments // groups), SEGMENTS * fit // groups))
    threads = 1 if kind == "cpu" else max(1, mixing.threads // groups)
    return [
        _Group(mixing, mixing.backend.distributions(count, mixing.window, mixing.order), count, threads)
        for _ in range(groups)
    ]
