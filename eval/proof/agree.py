"""Whether every way to run a pack says the same: each frequency of each token, on each device, and what decodes.

A text is coded on the first device as an archive is, and that is compared with the same on the other devices, with what
lanes of cached steps decode from the bytes, with its documents in other company and chunks, and with the reference on
torch.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.console import Advance, progress
from codec.errors import CodecError
from codec.exact.backend import Backend
from codec.exact.chunks import BAND_UNIT
from codec.exact.reference import TorchBackend
from codec.pack.reader import Pack
from codec.text.coder import Coder, record_of
from codec.text.documents import Prepared, prepare
from codec.text.open_coder import default_policy, make_coder
from codec.text.policy import Adaptation

COMPANIES = (1, 3, 17)
"""Documents that are scored together in turn, in the shortest chunks, where batches are other than the codec's."""

_SEED = 0

Intervals = list[NDArray[np.float64]]
"""(start, frequency, bits) float64 [3, T] of the tokens of each document, NaN where a pass has not been."""


@dataclass(frozen=True)
class Pass:
    """One way in which a text was run."""

    device: str
    arithmetic: str  # "kernels", or "reference": the one on torch
    what: str  # "batches" of chunks, as for an archive; "cached steps", which decode them; "other batches"
    tokens: int  # compared
    differences: int  # of them: another start or frequency, or in a document that is not restored
    first_difference: tuple[int, int] | None  # document and token, counted from 0; token 0 of one that is not restored
    seconds: float  # the first use of kernels includes their compilation
    tokens_per_second: float


@dataclass(frozen=True)
class Agreement:
    """What was compared; the first pass is what the others are compared with."""

    documents: int
    text_bytes: int
    tokens: int
    longest: int  # tokens of a document
    window: int
    intervals: dict[str, str]  # by device, hex SHA-256 of (start, frequency) int64 of all tokens in batches
    payloads: dict[str, str]  # by device, hex SHA-256 of what all documents are coded to
    passes: list[Pass]

    @property
    def differences(self) -> int:
        """Of all passes."""
        return sum(p.differences for p in self.passes)

    def to_json(self) -> dict[str, Any]:
        """The fields, and `differences`."""
        return {**asdict(self), "differences": self.differences}


def agree(
    pack: Pack,
    documents: Sequence[bytes],
    devices: Sequence[str],
    sample: int,
    adaptation: Adaptation = Adaptation.NONE,
) -> Agreement:
    """Run documents in every way and compare.

    Args:
        documents: any bytes; all go through the model.
        devices: "cpu" or "cuda", the first of which the others are compared with.
        sample: tokens, in whole documents, of the passes that are slow: those of the reference, and all on a processor
            but the first.

    Raises:
        MismatchError: the pack cannot code text, or has not what the adaptation needs.
    """
    coders = {device: make_coder(pack, default_policy(pack, adaptation), device) for device in devices}
    first = coders[devices[0]]
    prepared = [prepare(document, first.tokenizer, model_only=True) for document in documents]
    sizes = np.array([len(p.stream) - 1 for p in prepared])
    order = np.random.default_rng(_SEED).permutation(len(prepared))
    few = order[np.cumsum(sizes[order]) - sizes[order] < sample]
    expected: Intervals | None = None
    payloads: dict[str, dict[int, bytes]] = {}
    intervals: dict[str, str] = {}
    passes: list[Pass] = []
    for device, coder in coders.items():
        run = _Runner(device, coder, prepared)
        encoded, found = run.encoded(expected)
        expected = expected or found
        payloads[device] = {
            n: record_of(p, part, coder.total_bits, model_only=True).payload
            for n, (p, part) in enumerate(zip(prepared, found, strict=True))
        }
        intervals[device] = _digest(part[:2].astype("<i8").tobytes() for part in found)
        some = few if device == "cpu" else order
        passes += [encoded, run.decoded({int(n): payloads[devices[0]][n] for n in some})]
        passes.append(run.otherwise(coder.backend, some, expected))
        if not isinstance(coder.backend, TorchBackend):
            passes.append(run.otherwise(TorchBackend(coder.model, coder.recall), few, expected))
    return Agreement(
        documents=len(documents),
        text_bytes=sum(map(len, documents)),
        tokens=int(sizes.sum()),
        longest=int(sizes.max(initial=0)),
        window=first.window,
        intervals=intervals,
        payloads={device: _digest(of.values()) for device, of in payloads.items()},
        passes=passes,
    )


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


class _Runner:
    """Passes of one device."""

    def __init__(self, device: str, coder: Coder, prepared: Sequence[Prepared]):
        self._device, self._coder, self._prepared = device, coder, prepared
        self._bytes = sum(len(p.original) for p in prepared)

    def encoded(self, expected: Intervals | None) -> tuple[Pass, Intervals]:
        """As the codec encodes, compared with what is expected, with itself where None; and what was found."""
        began = time.perf_counter()
        with progress(f"{self._device}: encoding", self._bytes, "bytes") as advance:
            found = self._coder.intervals(self._prepared, advance)
        seconds = time.perf_counter() - began
        return self._pass(self._coder.backend, "batches", seconds, *compare(found, expected or found)), found

    def decoded(self, payloads: Mapping[int, bytes]) -> Pass:
        """As the codec decodes; only who finds the encoder's intervals for each token gets a document back."""
        began, size = time.perf_counter(), sum(map(len, payloads.values()))
        restored: dict[int, bytes] = {}
        # A document that goes astray raises an error; all that still ran are lost with it.
        with progress(f"{self._device}: decoding", size, "bytes") as advance, suppress(CodecError):
            restored.update(self._coder.decode(payloads, advance))
        seconds = time.perf_counter() - began
        lost = [n for n in payloads if restored.get(n) != self._prepared[n].original]
        tokens, differences = (sum(map(self._tokens, numbers)) for numbers in (payloads, lost))
        first = (lost[0], 0) if lost else None
        return self._pass(self._coder.backend, "cached steps", seconds, tokens, differences, first)

    def otherwise(self, backend: Backend, documents: Sequence[int] | NDArray[np.int64], expected: Intervals) -> Pass:
        """Some documents in any company, in short chunks."""
        found = [np.full_like(part, np.nan) for part in expected]
        began = time.perf_counter()
        with progress(f"{self._device}: scoring again", sum(map(self._tokens, documents)), "tokens") as advance:
            for company in self._companies(documents):
                self._score(backend, company, found, advance)
        seconds = time.perf_counter() - began
        return self._pass(backend, "other batches", seconds, *compare(found, expected))

    def _companies(self, documents: Sequence[int] | NDArray[np.int64]) -> Iterator[list[int]]:
        """The documents in their order, COMPANIES of them at a time, the longest of each company first."""
        at, turn = 0, 0
        while at < len(documents):
            count = COMPANIES[turn % len(COMPANIES)]
            yield sorted(map(int, documents[at : at + count]), key=self._tokens, reverse=True)
            at, turn = at + count, turn + 1

    def _score(self, backend: Backend, company: list[int], found: Intervals, advance: Advance) -> None:
        past = backend.past(len(company), self._coder.window)
        memory = backend.memory(len(company), self._tokens(company[0]))
        for begin in range(0, self._tokens(company[0]), BAND_UNIT):
            running = [n for n in company if self._tokens(n) > begin]
            ends = [min(begin + BAND_UNIT, self._tokens(n)) for n in running]
            inputs, targets = (
                [self._prepared[n].stream[begin + after : end + after] for n, end in zip(running, ends, strict=True)]
                for after in (0, 1)
            )
            scores, at = backend.score(inputs, targets, memory, past), 0
            for n, end in zip(running, ends, strict=True):
                found[n][:, begin:end] = scores[:, at : at + end - begin]
                at += end - begin
            advance(at)

    def _tokens(self, document: int) -> int:
        return len(self._prepared[document].stream) - 1

    def _pass(
        self, backend: Backend, what: str, seconds: float, tokens: int, differences: int, place: tuple[int, int] | None
    ) -> Pass:
        kind = "reference" if isinstance(backend, TorchBackend) else "kernels"
        return Pass(self._device, kind, what, tokens, differences, place, seconds, tokens / seconds)


def compare(found: Intervals, expected: Intervals) -> tuple[int, int, tuple[int, int] | None]:
    """Tokens compared, how many have another start or frequency, and the first (document, token)."""
    tokens, differences = 0, 0
    place: tuple[int, int] | None = None
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        seen = ~np.isnan(a[0])
        other = np.flatnonzero(seen & (a[:2] != b[:2]).any(0))
        tokens, differences = tokens + int(seen.sum()), differences + len(other)
        if len(other) and place is None:
            place = n, int(other[0])
    return tokens, differences, place
