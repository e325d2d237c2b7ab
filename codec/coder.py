"""Documents through the exact model: teacher-forced batches to encode, lanes of cached steps to decode.

The encoder knows every token, so it runs whole windows in batches. The decoder runs one token of many documents at a
time: a document is a lane of the cache, a finished lane takes the next document, and a lane whose window is full runs
the last tokens of it again as the start of the next. Exact arithmetic makes both produce the same integers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec import frequencies, patch, rangecoder
from codec.backend import Backend, make_backend
from codec.console import Advance, ignore_progress
from codec.documents import MAX_DOCUMENT, Prepared, Record, prepare, write_record
from codec.errors import DocumentError
from codec.exact import ExactModel
from codec.recall import Recall
from codec.tokenizer import BOS, Tokenizer
from codec.windows import Window, document_windows

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 48 << 30}
_MOST_LANES = {"cpu": 128, "cuda": 1024}
_FEWEST_LANES = {"cpu": 8, "cuda": 1024}  # that make a token as cheap as many do: a tile of 4 rows for 2 processors
_PREFILL_LANES = 16

_MOST_TOKENS_A_BYTE = 16
"""That a document has: normalisation makes 33 bytes of one character of 3 (U+FDFA), and a token has a byte at least."""


@dataclass(frozen=True)
class Coder:
    """A model, its tokenizer and the context policy of an archive."""

    model: ExactModel
    tokenizer: Tokenizer
    window: int  # tokens of context, at most the model's window
    stride: int  # new tokens for each further window of a long document
    recall: Recall | None = None

    @cached_property
    def backend(self) -> Backend:
        """Who computes what the model says."""
        return make_backend(self.model, self.recall)

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; `advance` is told bytes of text. `model_only` stores nothing."""
        prepared = [prepare(document, self.tokenizer, model_only) for document in documents]
        records = []
        for p, (starts, sizes, bits) in zip(prepared, self.intervals(prepared, advance), strict=True):
            records.append(write_record(p, starts.astype(np.int64), sizes.astype(np.int64), bits.sum(), model_only))
            if p.hopeless:
                advance(len(p.original))
        return records

    def intervals(self, prepared: Sequence[Prepared], advance: Advance = ignore_progress) -> list[NDArray[np.float64]]:
        """(start, frequency, bits) float64 [3, T + 1] of every token of each document, its end included.

        Those of a hopeless document are zeros. `advance` is told bytes of text.
        """
        intervals = [np.zeros((3, len(p.stream) - 1)) for p in prepared]
        for company in self._companies(prepared):
            memory = self.backend.memory(len(company))
            plans = [document_windows(len(prepared[n].stream) - 1, self.window, self.stride) for n in company]
            for turn in range(len(plans[0])):
                batch = [(n, plan[turn]) for n, plan in zip(company, plans, strict=True) if turn < len(plan)]
                self._score(batch, memory, prepared, intervals, advance)
        return intervals

    def _companies(self, prepared: Sequence[Prepared]) -> Iterator[list[int]]:
        """Documents whose windows run side by side, the longest first: at most _BATCH_TOKENS tokens at a time."""
        lengths = {n: len(p.stream) for n, p in enumerate(prepared) if not p.hopeless}
        limit = _BATCH_TOKENS[self.model.device.type]
        company: list[int] = []
        for n in sorted(lengths, key=lambda n: -lengths[n]):
            if company and (len(company) + 1) * min(lengths[company[0]], self.window) > limit:
                yield company
                company = []
            company.append(n)
        if company:
            yield company

    def _score(
        self,
        batch: list[tuple[int, Window]],
        memory: Any,
        prepared: Sequence[Prepared],
        intervals: list[NDArray[np.float64]],
        advance: Advance,
    ) -> None:
        """Fill in (start, frequency, bits) of the targets that the batch's windows score."""
        inputs = [prepared[n].stream[w.start : w.end] for n, w in batch]
        targets = [prepared[n].stream[w.score_from + 1 : w.end + 1] for n, w in batch]
        found = self.backend.score(inputs, targets, memory)
        at = 0
        for n, w in batch:
            count = w.end - w.score_from
            intervals[n][:, w.score_from : w.end] = found[:, at : at + count]
            at += count
            advance(len(prepared[n].original) * count / (len(prepared[n].stream) - 1))

    def decode(
        self, payloads: Mapping[int, bytes], advance: Advance = ignore_progress, longest: int = MAX_DOCUMENT
    ) -> Iterator[tuple[int, bytes]]:
        """Decode modelled records.

        Args:
            payloads: by document number.
            advance: told bytes of payload.
            longest: bytes of the longest document; a damaged one that goes on far beyond is given up.

        Yields:
            (document number, original bytes), in the order in which documents end.

        Raises:
            DocumentError: a payload ends before its document.
        """
        lanes = _Lanes(self, payloads, _MOST_TOKENS_A_BYTE * (longest + 1))
        while lanes.documents:
            yield from lanes.step(advance)


@dataclass
class _Lane:
    """A document being decoded."""

    number: int  # of the document
    tokens: list[int] = field(default_factory=lambda: [BOS])
    start: int = 0  # where its window begins

    @property
    def position(self) -> int:
        """Place in the window of the token that runs next."""
        return len(self.tokens) - 1 - self.start


class _Lanes:
    """The decoder's state: what each lane of the cache is decoding."""

    def __init__(self, coder: Coder, payloads: Mapping[int, bytes], most_tokens: int):
        self.coder, kind = coder, coder.model.device.type
        self.most_tokens = most_tokens
        most = max(1, min(_MOST_LANES[kind], _CACHE_BYTES[kind] // coder.backend.lane_bytes))
        self.payloads = {number: np.frombuffer(payload, np.uint8) for number, payload in payloads.items()}
        self.waiting = sorted(payloads, key=lambda number: len(payloads[number]))  # the longest is taken first
        self.data = np.frombuffer(b"".join(payloads.values()), np.uint8)
        sizes = [len(payload) for payload in payloads.values()]
        self.begins = dict(zip(payloads, np.cumsum([0, *sizes]).tolist(), strict=False))  # in `data`
        # The longest document takes its time alone, so that no more lanes are needed than let the others end with it.
        fewest = _FEWEST_LANES[kind]
        useful = max(1, round(sum(sizes) / max([1, *sizes]) / fewest)) * fewest
        count = min(most, useful, len(payloads))
        self.documents: list[_Lane | None] = [None] * count
        self.bounds = np.zeros((count, 2), np.int64)  # of each lane's payload in `data`
        self.states = np.zeros((count, 3), np.uint64)
        self.lanes = coder.backend.lanes(count)
        for lane in range(count):
            self._load(lane)

    def _load(self, lane: int) -> None:
        if not self.waiting:
            self.documents[lane] = None
            return
        number = self.waiting.pop()
        self.documents[lane] = _Lane(number)
        self.bounds[lane] = self.begins[number], self.begins[number] + len(self.payloads[number])
        rangecoder.start_decoder(self.states[lane], self.payloads[number])

    def step(self, advance: Advance) -> list[tuple[int, bytes]]:
        """Decode one token of every document; returns those that ended."""
        self._compact()
        active = self._active()
        if not active:
            self.documents = []
            return []
        self._slide(active)
        rows = [(lane, d.tokens[-1], d.tokens[-2:][0], d.position) for lane, d in active.items()]
        lanes, tokens, previous, positions = np.array(rows).T.copy()
        targets = _targets(self.states, lanes)
        symbols, starts, sizes = self.lanes.step(lanes, tokens, previous, positions, targets)
        _advance(self.states, lanes, self.data, self.bounds, starts, sizes)
        ended = []
        for (lane, document), symbol in zip(active.items(), symbols.tolist(), strict=True):
            document.tokens.append(symbol)
            size = len(self.payloads[document.number])
            spent = self.states[lane, 2] > size + rangecoder.CODE_BYTES
            if spent or len(document.tokens) > self.most_tokens:
                raise DocumentError(
                    f"its record of {size} bytes {'ends before' if spent else 'goes on after'} token "
                    f"{len(document.tokens) - 1}; the archive is damaged or was made with another pack",
                    document.number,
                    self.coder.tokenizer.decode(np.array(document.tokens[1:])),
                )
            if document.tokens[-1] == BOS:
                ended.append((document.number, self._finish(lane, document)))
                advance(size)
                self._load(lane)
        return ended

    def _finish(self, lane: int, document: _Lane) -> bytes:
        tokens = np.array(document.tokens[1:-1], np.int64)
        tokenizer, payload = self.coder.tokenizer, self.payloads[document.number]
        return patch.take_edits(self.states[lane], payload, tokenizer.decode(tokens), tokenizer.lossy)

    def _active(self) -> dict[int, _Lane]:
        """What is being decoded, by lane."""
        return {lane: document for lane, document in enumerate(self.documents) if document is not None}

    def _slide(self, active: Mapping[int, _Lane]) -> None:
        """Start a new window in every lane whose window is full: run its last window - stride tokens again."""
        full = [lane for lane, document in active.items() if document.position == self.coder.window]
        keep = self.coder.window - self.coder.stride
        for at in range(0, len(full), _PREFILL_LANES):
            lanes = full[at : at + _PREFILL_LANES]
            for lane in lanes:
                active[lane].start = len(active[lane].tokens) - 1 - keep
            if keep:
                self.lanes.prefill(lanes, np.array([active[lane].tokens[-1 - keep : -1] for lane in lanes]))

    def _compact(self) -> None:
        """Drop idle lanes once they are half of all."""
        active = list(self._active())
        if not active or 2 * len(active) > len(self.documents):
            return
        self.lanes.keep(active)
        self.documents = [self.documents[lane] for lane in active]
        self.bounds, self.states = self.bounds[active], self.states[active]


@njit(cache=True)
def _targets(states: NDArray[np.uint64], lanes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each lane's stream says of its next symbol, int64 [lanes] in [0, 2^24)."""
    out = np.empty(len(lanes), np.int64)
    for i, lane in enumerate(lanes):
        out[i] = rangecoder.target(
            states[lane], states[lane, 1] >> np.uint64(frequencies.TOTAL_BITS), frequencies.TOTAL
        )
    return out


@njit(cache=True)
def _advance(states, lanes, data, bounds, starts, sizes):
    for i, lane in enumerate(lanes):
        payload = data[bounds[lane, 0] : bounds[lane, 1]]
        rangecoder.take(
            states[lane], payload, starts[i], sizes[i], states[lane, 1] >> np.uint64(frequencies.TOTAL_BITS)
        )
