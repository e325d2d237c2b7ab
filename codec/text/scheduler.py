"""Assign documents to decoding slots: a slot whose document has ended takes the next document (continuous batching)."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from codec.console import Advance
from codec.devices import thread_pool
from codec.edits import coder as patch
from codec.entropy import range_coder
from codec.errors import DocumentError
from codec.exact.backend import Backend, Integers, States
from codec.model.byte_pairs import AnyTokenizer

_TOKEN = np.dtype(np.uint32)

_MOST_TOKENS_A_BYTE = 16
"""The most tokens for each byte of a document: normalisation makes 33 bytes of one character of 3 bytes (U+FDFA), and a
token has at least one byte."""


@dataclass
class _Slot:
    """The document in a decoding slot."""

    number: int  # of the document
    size: int  # of its payload
    most_tokens: float  # that the document has
    data: bytearray = field(default_factory=bytearray)  # the tokens that follow the one that begins it, as _TOKEN

    @property
    def count(self) -> int:
        """Return the number of tokens that are decoded."""
        return len(self.data) // _TOKEN.itemsize

    @property
    def tokens(self) -> Integers:
        """Return the tokens that are decoded: int64 [count]."""
        return np.frombuffer(self.data, _TOKEN).astype(np.int64)


class Decoding:
    """The state of decoding documents.

    Args:
        backend: runs the model and the range decoders of the slots.
        tokenizer: of the model.
        payloads: the payload of each document, by number; at least one.
        window: tokens of context, as of `codec.text.coder.Coder`.
        slots: the most decoding slots.
        room: bytes of a GPU's memory for the KV cache of all slots; elsewhere each slot has room for its window.
        threads: how many turn tokens of ended documents into bytes, while the slots go on.
        sizes: the bytes of each document, where they are known; a document of far more tokens is refused.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: AnyTokenizer,
        payloads: Mapping[int, bytes],
        window: int,
        slots: int,
        room: int,
        threads: int,
        sizes: Mapping[int, int] | None = None,
    ):
        self._tokenizer, self._threads = tokenizer, threads
        self._sizes = sizes or dict.fromkeys(payloads, None)
        self._payloads = {number: np.frombuffer(payload, np.uint8) for number, payload in payloads.items()}
        self._waiting = sorted(payloads, key=lambda number: len(payloads[number]))  # the longest is taken first
        ends = np.cumsum([len(payload) for payload in payloads.values()])
        self._ends = dict(zip(payloads, ends.tolist(), strict=True))  # in the data of all
        count = min(slots, len(payloads))
        data: NDArray[np.uint8] = np.frombuffer(b"".join(payloads.values()), np.uint8)
        self._decoder = backend.decoder(count, data, window, room)
        self._slots: list[_Slot | None] = [None] * count
        self._launched: deque[Callable[[], tuple[Integers, States]]] = deque()
        self._load(range(count))

    def documents(self, advance: Advance) -> Iterator[tuple[int, bytes]]:
        """Yield (number, original bytes) of every document, in the order in which documents end.

        `advance` is called with bytes of payload.

        Raises:
            DocumentError: a payload ends before its document.
        """
        with thread_pool(self._threads) as pool:
            ending: deque[tuple[int, int, Future[bytes]]] = deque()
            while any(self._slots) or ending:
                for number, tokens, state in self._run() if any(self._slots) else ():
                    payload = self._payloads.pop(number)
                    ending.append((number, len(payload), pool.submit(self._text, number, payload, tokens, state)))
                while ending and (ending[0][2].done() or not any(self._slots)):
                    number, size, text = ending.popleft()
                    yield number, text.result()
                    advance(size)

    def _run(self) -> list[tuple[int, Integers, NDArray[np.uint64]]]:
        """Decode a few tokens in every slot; return (number, tokens, range decoder) of each document that ends."""
        self._launch()
        symbols, states = self._launched.popleft()()
        ended: dict[int, tuple[int, Integers, NDArray[np.uint64]]] = {}
        counts, width = (symbols >= 0).sum(0), len(symbols) * _TOKEN.itemsize
        last = symbols[counts - 1, np.arange(len(counts))].tolist()  # -1 where a slot was idle
        sizes, read = (counts * _TOKEN.itemsize).tolist(), states[:, 2].tolist()
        data = symbols.T.astype(_TOKEN).tobytes()  # of each slot in turn; there may be thousands
        for n, slot in enumerate(self._slots):
            if slot is None or not sizes[n]:  # idle: what it does came after these steps were launched, or it waits
                continue
            slot.data += data[n * width : n * width + sizes[n]]
            if read[n] > slot.size + range_coder.CODE_BYTES or slot.count > slot.most_tokens:
                raise self._failure(slot, read[n])
            if last[n] == self._tokenizer.end:
                ended[n] = slot.number, slot.tokens[:-1], states[n].copy()
        self._load(list(ended))
        return list(ended.values())

    def _text(self, number: int, payload: NDArray[np.uint8], tokens: Integers, state: NDArray[np.uint64]) -> bytes:
        """Return the original bytes of a document."""
        canonical = self._tokenizer.decode(tokens)
        return patch.take_edits(state, payload, canonical, self._tokenizer.lossy, self._sizes[number])

    def _load(self, slots: "range | list[int]") -> None:
        """Give idle slots the next documents, as long as there are any."""
        taken = []
        for n in slots:
            number = self._waiting.pop() if self._waiting else None
            self._slots[n] = None if number is None else self._slot(number)
            if (slot := self._slots[n]) is not None:
                taken.append((n, slot))
        if taken:
            ends = np.array([self._ends[slot.number] for _, slot in taken])
            sizes = np.array([slot.size for _, slot in taken])
            self._decoder.load([n for n, _ in taken], ends - sizes, ends)

    def _slot(self, number: int) -> _Slot:
        size = self._sizes[number]
        return _Slot(number, len(self._payloads[number]), inf if size is None else _MOST_TOKENS_A_BYTE * (size + 1))

    def _failure(self, slot: _Slot, read: int) -> DocumentError:
        """Make the error for a slot that has read `read` bytes, too many, or that has decoded too many tokens."""
        spent = read > slot.size + range_coder.CODE_BYTES
        return DocumentError(
            f"its record of {slot.size} bytes {'ends before' if spent else 'goes on after'} token {slot.count}; "
            "the archive is damaged or was made with another pack",
            slot.number,
            self._tokenizer.decode(slot.tokens),
        )

    def _launch(self) -> None:
        """Keep as many steps launched as the backend asks for.

        Idle slots are dropped once they are half of all slots and no step is launched: slots then have new numbers.
        """
        active = [n for n, slot in enumerate(self._slots) if slot is not None]
        if 2 * len(active) <= len(self._slots):
            if self._launched:
                return  # and let that run out first
            self._decoder.keep(active)
            self._slots = [self._slots[n] for n in active]
        while len(self._launched) <= self._decoder.ahead:
            self._launched.append(self._decoder.launch())
