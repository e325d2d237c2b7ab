"""Compare every way to run a pack: each frequency of each token on each device, and the documents that decode.

The first device codes a text as it codes an archive. The integers of that pass are compared with the same pass on the
other devices, with passes over other batches and shorter chunks, and with the reference on torch. Decoding slots decode
the bytes again, one cached step after the other.
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
from codec.exact.chunks import CHUNK_UNIT
from codec.exact.reference import TorchBackend
from codec.pack.reader import Pack
from codec.text.coder import Coder, record_of
from codec.text.documents import Prepared, prepare
from codec.text.open_coder import default_policy, make_coder
from codec.text.policy import Adaptation

BATCH_SIZES = (1, 3, 17)
"""Sizes of the batches, in turn, of the pass that differs from the codec's batches; its chunks are the shortest."""

_SEED = 0

Intervals = list[NDArray[np.float64]]
"""(start, frequency, bits) float64 [3, T] of the tokens of each document, NaN for tokens that a pass did not run."""


@dataclass(frozen=True)
class Pass:
    """The result of one way to run a text."""

    device: str
    arithmetic: str  # "kernels", or "reference" for the reference on torch
    what: str  # "batches" of chunks, as for an archive; "cached steps", which decode; "other batches"
    tokens: int  # compared
    differences: int  # tokens with another start or frequency, or in a document that is not restored
    first_difference: tuple[int, int] | None  # document and token, from 0; token 0 of a document that is not restored
    seconds: float  # the first use of kernels includes their compilation
    tokens_per_second: float


@dataclass(frozen=True)
class Agreement:
    """All passes over a text; the first pass is the one that the others are compared with."""

    documents: int
    text_bytes: int
    tokens: int
    longest: int  # tokens of a document
    window: int
    intervals: dict[str, str]  # by device, hex SHA-256 of (start, frequency) int64 of all tokens in batches
    payloads: dict[str, str]  # by device, hex SHA-256 of the payloads of all documents
    passes: list[Pass]

    @property
    def differences(self) -> int:
        """Return the number of tokens that differ, summed over all passes."""
        return sum(p.differences for p in self.passes)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `differences` as plain values."""
        return {**asdict(self), "differences": self.differences}


def agree(
    pack: Pack,
    documents: Sequence[bytes],
    devices: Sequence[str],
    sample: int,
    adaptation: Adaptation = Adaptation.NONE,
) -> Agreement:
    """Run documents in every way and compare the results.

    Args:
        pack: the pack to run.
        documents: any bytes; all go through the model.
        devices: "cpu" or "cuda"; all devices are compared with the first.
        sample: tokens, in whole documents, that slow passes run: the passes of the reference, and on a processor all
            passes but the first.
        adaptation: of the archive that is coded.

    Raises:
        MismatchError: the pack cannot code text, or lacks what the adaptation needs.
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
    """Run the passes of one device."""

    def __init__(self, device: str, coder: Coder, prepared: Sequence[Prepared]):
        self._device, self._coder, self._prepared = device, coder, prepared
        self._bytes = sum(len(p.original) for p in prepared)

    def encoded(self, expected: Intervals | None) -> tuple[Pass, Intervals]:
        """Encode as the codec does; return the comparison with `expected` (None: with itself) and the intervals."""
        began = time.perf_counter()
        with progress(f"{self._device}: encoding", self._bytes, "bytes") as advance:
            found = self._coder.intervals(self._prepared, advance)
        seconds = time.perf_counter() - began
        return self._pass(self._coder.backend, "batches", seconds, *compare(found, expected or found)), found

    def decoded(self, payloads: Mapping[int, bytes]) -> Pass:
        """Decode as the codec does; a document is restored only if every token has the encoder's interval."""
        began, size = time.perf_counter(), sum(map(len, payloads.values()))
        restored: dict[int, bytes] = {}
        # The first document that fails to decode raises; documents that are still running then count as lost, too.
        with progress(f"{self._device}: decoding", size, "bytes") as advance, suppress(CodecError):
            restored.update(self._coder.decode(payloads, advance))
        seconds = time.perf_counter() - began
        lost = [n for n in payloads if restored.get(n) != self._prepared[n].original]
        tokens, differences = (sum(map(self._tokens, numbers)) for numbers in (payloads, lost))
        first = (lost[0], 0) if lost else None
        return self._pass(self._coder.backend, "cached steps", seconds, tokens, differences, first)

    def otherwise(self, backend: Backend, documents: Sequence[int] | NDArray[np.int64], expected: Intervals) -> Pass:
        """Score some documents in batches of other sizes, in short chunks."""
        found = [np.full_like(part, np.nan) for part in expected]
        began = time.perf_counter()
        with progress(f"{self._device}: scoring again", sum(map(self._tokens, documents)), "tokens") as advance:
            for batch in self._batches(documents):
                self._score(backend, batch, found, advance)
        seconds = time.perf_counter() - began
        return self._pass(backend, "other batches", seconds, *compare(found, expected))

    def _batches(self, documents: Sequence[int] | NDArray[np.int64]) -> Iterator[list[int]]:
        """Cut documents into batches of BATCH_SIZES in turn, the longest document of each batch first."""
        at, turn = 0, 0
        while at < len(documents):
            count = BATCH_SIZES[turn % len(BATCH_SIZES)]
            yield sorted(map(int, documents[at : at + count]), key=self._tokens, reverse=True)
            at, turn = at + count, turn + 1

    def _score(self, backend: Backend, batch: list[int], found: Intervals, advance: Advance) -> None:
        past = backend.past(len(batch), self._coder.window)
        memory = backend.memory(len(batch), self._tokens(batch[0]))
        for begin in range(0, self._tokens(batch[0]), CHUNK_UNIT):
            running = [n for n in batch if self._tokens(n) > begin]
            ends = [min(begin + CHUNK_UNIT, self._tokens(n)) for n in running]
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
    """Count the tokens compared, the tokens of another start or frequency, and find the first (document, token)."""
    tokens, differences = 0, 0
    place: tuple[int, int] | None = None
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        seen = ~np.isnan(a[0])
        other = np.flatnonzero(seen & (a[:2] != b[:2]).any(0))
        tokens, differences = tokens + int(seen.sum()), differences + len(other)
        if len(other) and place is None:
            place = n, int(other[0])
    return tokens, differences, place
