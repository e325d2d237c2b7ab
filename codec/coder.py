"""Documents through the exact model: teacher-forced batches to encode, lanes of cached steps to decode.

The encoder knows every token, so it runs whole windows in batches. The decoder runs one token of many documents at a
time: a document is a lane of the cache, a finished lane takes the next document, and a lane whose window is full runs
the last tokens of it again as the start of the next. Exact arithmetic makes both produce the same integers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from codec import frequencies, patch, rangecoder
from codec.console import Advance, ignore_progress
from codec.documents import Prepared, Record, prepare, write_record
from codec.errors import DocumentError
from codec.exact import Cache, ExactModel
from codec.tokenizer import BOS, Tokenizer
from codec.windows import Window, document_windows

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
_HEAD_ROWS = {"cpu": 512, "cuda": 8192}  # rows of logits held at once
_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 48 << 30}
_MOST_LANES = {"cpu": 128, "cuda": 1024}
_PREFILL_LANES = 16


@dataclass(frozen=True)
class Coder:
    """A model, its tokenizer and the context policy of an archive."""

    model: ExactModel
    tokenizer: Tokenizer
    window: int  # tokens of context, at most the model's window
    stride: int  # new tokens for each further window of a long document

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; `advance` is told bytes of text. `model_only` stores nothing."""
        prepared = [prepare(document, self.tokenizer, model_only) for document in documents]
        intervals = [np.zeros((3, len(p.stream) - 1)) for p in prepared]
        for batch in self._batches(prepared):
            self._score(batch, prepared, intervals, advance)
        records = []
        for p, (starts, sizes, bits) in zip(prepared, intervals, strict=True):
            records.append(write_record(p, starts.astype(np.int64), sizes.astype(np.int64), bits.sum(), model_only))
            if p.hopeless:
                advance(len(p.original))
        return records

    def _batches(self, prepared: Sequence[Prepared]) -> Iterator[list[tuple[int, Window]]]:
        """(document, window) pairs of similar length, at most _BATCH_TOKENS tokens a batch."""
        jobs = [
            (n, window)
            for n, p in enumerate(prepared)
            if not p.hopeless
            for window in document_windows(len(p.stream) - 1, self.window, self.stride)
        ]
        jobs.sort(key=lambda job: job[1].end - job[1].start)
        limit = _BATCH_TOKENS[self.model.device.type]
        batch: list[tuple[int, Window]] = []
        for job in jobs:
            if batch and (len(batch) + 1) * (job[1].end - job[1].start) > limit:
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _score(
        self,
        batch: list[tuple[int, Window]],
        prepared: Sequence[Prepared],
        intervals: list[NDArray[np.float64]],
        advance: Advance,
    ) -> None:
        """Fill in (start, frequency, bits) of the targets that the batch's windows score."""
        longest = max(window.end - window.start for _, window in batch)
        tokens = np.full((len(batch), longest), BOS)
        for row, (n, window) in enumerate(batch):
            tokens[row, : window.end - window.start] = prepared[n].stream[window.start : window.end]
        hidden, step = self.model.forward(torch.from_numpy(tokens).to(self.model.device))
        scored = [
            np.arange(w.score_from - w.start, w.end - w.start) + row * longest for row, (_, w) in enumerate(batch)
        ]
        targets = [prepared[n].stream[w.score_from + 1 : w.end + 1] for n, w in batch]
        found = self._intervals(
            hidden.flatten(0, 1), step.flatten(0, 1), np.concatenate(scored), np.concatenate(targets)
        )
        at = 0
        for n, w in batch:
            count = w.end - w.score_from
            intervals[n][:, w.score_from : w.end] = found[:, at : at + count]
            at += count
            advance(len(prepared[n].original) * count / (len(prepared[n].stream) - 1))

    def _intervals(
        self, hidden: torch.Tensor, step: torch.Tensor, rows: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        device, size = self.model.device, _HEAD_ROWS[self.model.device.type]
        out = np.empty((3, len(rows)))
        for at in range(0, len(rows), size):
            index = torch.from_numpy(rows[at : at + size]).to(device)
            levels = self.model.levels(hidden[index], step[index])
            parts = frequencies.intervals(levels, torch.from_numpy(targets[at : at + size]).to(device))
            out[:, at : at + size] = torch.stack([part.double() for part in parts]).cpu().numpy()
        return out

    def decode(self, payloads: Mapping[int, bytes], advance: Advance = ignore_progress) -> Iterator[tuple[int, bytes]]:
        """Decode modelled records, keyed by document number; `advance` is told bytes of payload.

        Yields:
            (document number, original bytes), in the order in which documents end.

        Raises:
            DocumentError: a payload ends before its document.
        """
        lanes = _Lanes(self, payloads)
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

    def __init__(self, coder: Coder, payloads: Mapping[int, bytes]):
        self.coder, model = coder, coder.model
        c, device = model.config, model.device
        lane_bytes = 2 * len(c.schedule) * c.kv_dim * c.window * 8
        most = max(1, min(_MOST_LANES[device.type], _CACHE_BYTES[device.type] // lane_bytes))
        self.payloads = {number: np.frombuffer(payload, np.uint8) for number, payload in payloads.items()}
        self.waiting = sorted(payloads, key=lambda number: len(payloads[number]))  # the longest is taken first
        self.data = np.frombuffer(b"".join(payloads.values()), np.uint8)
        sizes = [len(payload) for payload in payloads.values()]
        self.begins = dict(zip(payloads, np.cumsum([0, *sizes]).tolist(), strict=False))  # in `data`
        count = min(most, len(payloads))
        self.documents: list[_Lane | None] = [None] * count
        self.bounds = np.zeros((count, 2), np.int64)  # of each lane's payload in `data`
        self.states = np.zeros((count, 3), np.uint64)
        self.cache: Cache = model.new_cache(count)
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
        active = [n for n, document in enumerate(self.documents) if document is not None]
        if not active:
            self.documents = []
            return []
        self._slide()
        model, device = self.coder.model, self.coder.model.device
        run = [document or _Lane(-1) for document in self.documents]
        inputs = np.array([[d.tokens[-1], d.tokens[-2] if len(d.tokens) > 1 else BOS, d.position] for d in run])
        tokens, previous, positions = torch.from_numpy(inputs.T.copy()).to(device)
        levels = model.levels(*model.step(tokens, previous, positions, self.cache))[:, 0]
        targets = torch.from_numpy(_targets(self.states)).to(device)
        found = torch.stack(frequencies.find(levels, targets)).cpu().numpy()
        _advance(self.states, self.data, self.bounds, found[1], found[2])
        ended = []
        for lane in active:
            document = run[lane]
            document.tokens.append(int(found[0, lane]))
            size = len(self.payloads[document.number])
            if self.states[lane, 2] > size + rangecoder.CODE_BYTES:
                raise DocumentError(
                    f"its record of {size} bytes ends before token {len(document.tokens) - 1}; "
                    "the archive is damaged or was made with another pack",
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
        return patch.take_edits(self.states[lane], self.payloads[document.number], self.coder.tokenizer.decode(tokens))

    def _slide(self) -> None:
        """Start a new window in every lane whose window is full: run its last window - stride tokens again."""
        coder = self.coder
        full = [n for n, d in enumerate(self.documents) if d is not None and d.position == coder.window]
        keep = coder.window - coder.stride
        for at in range(0, len(full), _PREFILL_LANES):
            lanes = full[at : at + _PREFILL_LANES]
            rows = []
            for n in lanes:
                document = self.documents[n]
                assert document is not None
                document.start = len(document.tokens) - 1 - keep
                rows.append(document.tokens[document.start : -1])
            if keep:
                device = coder.model.device
                coder.model.forward(torch.tensor(rows).to(device), self.cache, torch.tensor(lanes).to(device))

    def _compact(self) -> None:
        """Drop idle lanes once they are half of all."""
        active = [n for n, document in enumerate(self.documents) if document is not None]
        if not active or 2 * len(active) > len(self.documents):
            return
        index = torch.tensor(active).to(self.coder.model.device)
        self.cache = Cache([k[index] for k in self.cache.keys], [v[index] for v in self.cache.values])
        self.documents = [self.documents[n] for n in active]
        self.bounds, self.states = self.bounds[active], self.states[active]


@njit(cache=True)
def _targets(states: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What every lane's stream says of its next symbol, int64 [lanes] in [0, 2^24)."""
    out = np.empty(states.shape[0], np.int64)
    for n in range(states.shape[0]):
        unit = max(states[n, 1] >> np.uint64(frequencies.TOTAL_BITS), np.uint64(1))  # idle lanes have range 0
        out[n] = rangecoder.target(states[n], unit, frequencies.TOTAL)
    return out


@njit(cache=True)
def _advance(states, data, bounds, starts, sizes):
    for n in range(states.shape[0]):
        unit = states[n, 1] >> np.uint64(frequencies.TOTAL_BITS)
        if unit:
            rangecoder.take(states[n], data[bounds[n, 0] : bounds[n, 1]], starts[n], sizes[n], unit)
