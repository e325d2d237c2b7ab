"""Decode blocks of `codec.text.mixed` side by side: the model steps once for many slots, then each decodes a token.

Slots are in groups, each with a thread, so that one group's tokens are decoded while the model steps for another; on a
processor there is a group for each thread. A block that ends makes room for the next, the largest first.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.typed import List
from numpy.typing import NDArray

from codec.cm.state import Stream
from codec.cm.tokens import decode_token, new_tokens
from codec.cm.vocabulary import Vocabulary
from codec.devices import thread_pool
from codec.edits import coder as patch
from codec.edits import line_ends
from codec.entropy import range_coder
from codec.errors import FormatError
from codec.exact.backend import Distributions, Integers
from codec.model.tokenizer import BOS
from codec.text.mixed import Header, Mixing, most_tokens, read_header

_SLOTS = {"cpu": 4, "cuda": 192}
"""Of a group: as many as a processor's matrix products take together, and as many as two groups of keep a GPU busy."""

_GROUPS = 2  # on a GPU
_STREAM_BYTES = {"cpu": 1 << 30, "cuda": 64 << 30}  # that the streams of all slots may take

TOKEN, PREVIOUS, POSITION, LEFT, DONE = range(5)
"""Columns of the places of slots: what runs next, bytes of tokens that are to come, and whether no more are."""


class Slot(NamedTuple):
    """What a block's tokens are decoded with."""

    stream: Stream
    state: NDArray[np.uint64]
    code: NDArray[np.uint8]
    tokens: NDArray[np.uint16]  # those decoded so far, and room for the others
    kinds: NDArray[np.uint8]  # of line ends


@dataclass(frozen=True)
class _Block:
    """A block to decode."""

    number: int
    payload: bytes
    size: int
    header: Header


@njit(cache=True)
def _first_slot(slot):
    """A list of slots with one."""
    slots = List()
    slots.append(slot)
    return slots


@njit(cache=True)
def _put_slot(slots, at, slot):
    """Put a slot into the list, or behind its last."""
    if at < len(slots):
        slots[at] = slot
    else:
        slots.append(slot)


@njit(cache=True, nogil=True)
def _decode(slots, which, places, v, order, lengths, sums, scratch):
    """Decode the next token of some slots.

    Args:
        slots: a list of `Slot`.
        which: int64 [n], numbers of slots.
        places: int64 [slots, 5].
        v: the Vocabulary, whose ids are ranks.
        order, lengths: int64 [V], token ids by rank, and bytes by token id.
        sums: int64 [n, V + 1], of each of `which`.
        scratch: int64 [V + 1].
    """
    for i in range(len(which)):
        at = which[i]
        stream, state, code, tokens, _ = slots[at]
        place = places[at]
        token = order[decode_token(stream, v, state, code, sums[i], scratch)]
        tokens[place[POSITION]] = token
        place[PREVIOUS], place[TOKEN] = place[TOKEN], token
        place[POSITION] += 1
        place[LEFT] -= lengths[token]
        spent = state[2] > np.uint64(len(code) + range_coder.CODE_BYTES)
        place[DONE] = 1 if spent or place[LEFT] <= 0 or place[POSITION] >= len(tokens) else 0


class _Group:
    """Slots that step together, on a thread of their own.

    Args:
        threads: that decode their tokens.
    """

    def __init__(self, mixing: Mixing, distributions: Distributions, count: int, threads: int):
        self._mixing, self._distributions, self._threads = mixing, distributions, threads
        self._places = np.zeros((count, 5), np.int64)
        self._blocks: list[_Block | None] = [None] * count
        self._slots: Any = None  # a numba.typed.List of Slot
        self._scratch = np.zeros((threads, len(mixing.order) + 1), np.int64)

    def run(self, waiting: "deque[_Block]", found: "SimpleQueue[Any]", stopped: threading.Event) -> None:
        """Decode blocks until none waits; into `found` goes what makes each one's bytes, or what went wrong."""
        try:
            with thread_pool(self._threads) as pool:
                while self._fill(waiting) and not stopped.is_set():
                    self._step(pool)
                    for at in np.flatnonzero(self._places[:, DONE]).tolist():
                        block, slot = self._blocks[at], self._slots[at]
                        found.put(partial(_finish, self._mixing, block, slot, *self._places[at, [POSITION, LEFT]]))
                        self._blocks[at], self._places[at, DONE] = None, 0
        except BaseException as error:  # the thread that waits for blocks raises it
            found.put(error)

    def _fill(self, waiting: "deque[_Block]") -> bool:
        """Give idle slots blocks that wait; tells whether any slot has one."""
        for at in [n for n, block in enumerate(self._blocks) if block is None]:
            try:
                block = waiting.popleft()
            except IndexError:  # another group may have taken the last
                break
            slot = _new_slot(block)
            if self._slots is None:
                self._slots = _first_slot(slot)
            else:
                _put_slot(self._slots, at, slot)
            self._blocks[at], self._places[at] = block, (BOS, BOS, 0, block.header.canonical, 0)
        return any(self._blocks)

    def _step(self, pool: ThreadPoolExecutor) -> None:
        """Decode a token of every slot that has a block."""
        m, which = self._mixing, np.array([n for n, block in enumerate(self._blocks) if block])
        tokens, previous, positions = self._places[which, :LEFT].T
        sums = self._distributions.step(which, tokens, previous, positions)
        arguments = self._places, m.vocabulary, m.order, m.tokenizer.token_lengths
        if self._threads == 1:
            _decode(self._slots, which, *arguments, sums, self._scratch[0])
            return
        edges = np.linspace(0, len(which), self._threads + 1).astype(int).tolist()
        jobs = [
            pool.submit(_decode, self._slots, which[a:b], *arguments, sums[a:b], scratch)
            for a, b, scratch in zip(edges, edges[1:], self._scratch, strict=False)
        ]
        for job in jobs:
            job.result()


def _new_slot(block: _Block) -> Slot:
    """A slot at the first token of a block; its line ends are decoded."""
    head, state = block.header, np.zeros(3, np.uint64)
    code, kinds = np.frombuffer(block.payload, np.uint8, offset=head.end).copy(), np.zeros(head.lines, np.uint8)
    range_coder.start_decoder(state, code)
    line_ends.code(state, code, kinds, True)
    tokens = np.zeros(most_tokens(block.size, head.canonical), np.uint16)
    return Slot(new_tokens(head.canonical), state, code, tokens, kinds)


def _finish(mixing: Mixing, block: _Block, slot: Slot, count: int, left: int) -> tuple[int, bytes]:
    """The number and the bytes of a block whose tokens are decoded. Raises FormatError where they are not all."""
    if left:
        raise FormatError(
            f"block {block.number}: {left} bytes of tokens are missing behind token {count}; the archive is damaged or was "
            "made with another pack"
        )
    tokenizer = mixing.tokenizer
    canonical = tokenizer.decode(slot.tokens[:count].astype(np.int64))
    text = patch.take_edits(slot.state, slot.code, canonical, tokenizer.lossy, longest=block.size)
    data = line_ends.join(text, slot.kinds)
    if len(data) != block.size:
        raise FormatError(f"block {block.number} has {len(data)} bytes, expected {block.size}; the archive is damaged")
    return block.number, data


def decode(mixing: Mixing, blocks: Mapping[int, tuple[bytes, int]]) -> Iterator[tuple[int, bytes]]:
    """Decode blocks, each a payload and the size of its bytes, by number.

    Time and memory are bounded by the sizes.

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
    with thread_pool(len(groups)) as pool:
        try:
            for group in groups:
                pool.submit(group.run, waiting, found, stopped)
            for _ in todo:
                finish = found.get()
                if isinstance(finish, BaseException):
                    raise finish
                yield finish()
        finally:
            stopped.set()


def _groups(mixing: Mixing, waiting: "deque[_Block]") -> list[_Group]:
    """As many groups and slots as pay for the blocks that wait, and have room."""
    kind, blocks = mixing.kind, len(waiting)
    stream = sum(part.nbytes for part in new_tokens(waiting[0].header.canonical))
    fit = max(1, _STREAM_BYTES[kind] // stream)
    groups = min(mixing.threads if kind == "cpu" else _GROUPS, blocks, fit)
    count = min(_SLOTS[kind], -(-blocks // groups), max(1, fit // groups))
    threads = 1 if kind == "cpu" else max(1, mixing.threads // groups)
    return [
        _Group(mixing, mixing.backend.distributions(count, mixing.window, mixing.order), count, threads)
        for _ in range(groups)
    ]
