"""Documents through the exact model: teacher-forced batches to encode, lanes of cached steps to decode.

The encoder knows every token, so it runs whole chunks in batches. The decoder runs one token of many documents at a
time: a document is a lane of the cache, a ring that keeps the last tokens, and a finished lane takes the next document.
Exact arithmetic makes both produce the same integers.

A token sees the last `window` tokens (sliding-window attention), of which nothing is computed twice; what tokens of one
layer saw, those of the next see through them.
"""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.backends.select import make_backend
from codec.console import Advance, ignore_progress
from codec.devices import thread_pool
from codec.exact.backend import Backend
from codec.exact.chunks import Chunk, prefill_chunks
from codec.exact.families.weights import AnyWeights
from codec.exact.recall import Recall
from codec.model.byte_pairs import AnyTokenizer
from codec.numerics.widths import total_bits
from codec.text.documents import Prepared, Record, prepare, write_record
from codec.text.golden import check_once as check_golden
from codec.text.pipeline import Ahead, _Group, _Part
from codec.text.scheduler import Decoding

if TYPE_CHECKING:
    from codec.exact.families.transformer import AnyExact

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
_PART_BYTES = {"cpu": 1 << 17, "cuda": 1 << 21}  # of text that is prepared while the part before it runs: some batches
_LEAST_BYTES = {"cpu": 1 << 17, "cuda": 1 << 18}  # of the first part and the last, which nothing else runs beside
_RUNNING = 1  # batches that a GPU has not been waited for when it is given one more
_GROUPS = 2  # whose documents are in memory, and the next
_CACHE_BYTES = 1 << 30  # of a processor's lanes
_MOST_LANES = {"cpu": 128, "cuda": 4096}
_FEWEST_LANES = {"cpu": 8, "cuda": 1024}  # that make a token as cheap as many do: a tile of 4 rows for 2 processors

_TOKENS_A_BYTE = 2
"""Of a payload, about: 1.9 with the record-class model's 8,192 tokens, 2.1 with 1,024 and the pack that ships."""


@dataclass(frozen=True)
class Coder:
    """A model, its tokenizer and the context policy of an archive, on one device."""

    weights: AnyWeights
    device: str  # cpu, or cuda for torch's current GPU
    tokenizer: AnyTokenizer
    window: int  # tokens of context, at most the model's window
    recall: Recall | None = None
    threads: int = 1  # that do what is not the model's part: tokens, edits, zstandard

    @property
    def total_bits(self) -> int:
        """The power of two that frequencies sum to."""
        return total_bits(self.weights.config.vocab_size)

    @cached_property
    def backend(self) -> Backend:
        """Who computes what the model says; errors as of `codec.text.golden.check`."""
        check_golden()
        return make_backend(self.weights, self.device, self.recall)

    @cached_property
    def model(self) -> "AnyExact":
        """The reference on torch, which a fast backend does without."""
        from codec.exact.families.transformer import exact_model

        return exact_model(self.weights, self.device)

    def start(self, advance: Advance = ignore_progress) -> None:
        """See `DocumentCoder`."""
        check_golden()  # and so compile what codes edits; the backend compiles the model
        advance(0)
        _ = self.backend  # made when it is first asked for
        advance(0)

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; `advance` is told bytes of text. `model_only` stores nothing."""
        found = [records for _, records in self.encode_groups(iter(documents), sys.maxsize, model_only, advance)]
        return found[0] if found else []

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """Code documents in groups that end as soon as they have `limit` bytes, each as `encode` does.

        While the model is at one part of them, threads prepare what follows and write the records of what it has
        scored, across groups: it never waits for the end of one. A GPU is given a batch before the one before is waited
        for, and documents are read while it is at one.

        Yields:
            each group and its records, in their order; where reading fails, all groups before that.
        """
        running: deque[Callable[[], None]] = deque()  # waits for batches; behind those of a company, its records
        begun: deque[_Group] = deque()
        with thread_pool(self.threads) as pool:

            def record(
                part: _Part,
                members: Sequence[int],
                prepared: Sequence[Prepared],
                intervals: Sequence[NDArray[np.float64]],
            ) -> None:
                for n in members:
                    future = pool.submit(record_of, prepared[n], intervals[n], self.total_bits, model_only)
                    part.group.records[part.numbers[n]] = future

            for part in self._prepare_ahead(Ahead(documents, limit), pool, model_only):
                if part.group not in begun:
                    begun.append(part.group)
                prepared = [future.result() for future in part.prepared]
                intervals = [np.zeros((3, len(p.stream) - 1)) for p in prepared]
                hopeless = [n for n, p in enumerate(prepared) if p.hopeless]
                advance(sum(len(prepared[n].original) for n in hopeless))
                record(part, hopeless, prepared, intervals)
                for company in self._companies(prepared):
                    for wait in self._launch(company, prepared, intervals, advance):
                        running.append(wait)
                        while len(running) > _RUNNING:
                            running.popleft()()
                    running.append(partial(record, part, company, prepared, intervals))
                # What launches nothing, or a record that takes long, does not keep earlier groups in memory.
                while running and (part.last or len(begun) > _GROUPS):
                    running.popleft()()
                while begun and (begun[0].done or part.last or len(begun) > _GROUPS):
                    yield begun.popleft().result()

    def _prepare_ahead(self, ahead: Ahead, pool: ThreadPoolExecutor, model_only: bool) -> Iterator[_Part]:
        """Parts of the groups in turn; when one is yielded, threads are already at the next."""
        before = None
        while documents := ahead.take():
            group = _Group(documents)
            for numbers in self._parts(documents, first=before is None, last=ahead.ended):
                futures = [pool.submit(prepare, documents[n], self.tokenizer, model_only) for n in numbers]
                if before:
                    yield before
                before = _Part(group, numbers, futures)
                ahead.read(sum(len(documents[n]) for n in numbers))
        if before:
            yield replace(before, last=True)
        if ahead.failure:
            raise ahead.failure

    def _parts(self, documents: Sequence[bytes], first: bool, last: bool) -> list[list[int]]:
        """Numbers of documents in parts, the longest first, as `_companies` takes them.

        In the first group they grow from _LEAST_BYTES to _PART_BYTES, and in the last they shrink again.
        """
        sizes, device = [len(document) for document in documents], self.device
        parts: list[list[int]] = []
        before, left, room = 0 if first else _PART_BYTES[device], sum(sizes), 0
        for n in sorted(range(len(documents)), key=lambda n: -sizes[n]):
            if room <= 0:
                parts.append([])
                room = min(max(min(before, left // 2 if last else left), _LEAST_BYTES[device]), _PART_BYTES[device])
            parts[-1].append(n)
            before, left, room = before + sizes[n], left - sizes[n], room - sizes[n]
        return parts

    def intervals(self, prepared: Sequence[Prepared], advance: Advance = ignore_progress) -> list[NDArray[np.float64]]:
        """(start, frequency, bits) float64 [3, T + 1] of every token of each document, its end included.

        Those of a hopeless document are zeros. `advance` is told bytes of text.
        """
        intervals = [np.zeros((3, len(p.stream) - 1)) for p in prepared]
        for company in self._companies(prepared):
            for wait in self._launch(company, prepared, intervals, advance):
                wait()
        return intervals

    def _launch(
        self,
        company: Sequence[int],
        prepared: Sequence[Prepared],
        intervals: list[NDArray[np.float64]],
        advance: Advance,
    ) -> Iterator[Callable[[], None]]:
        """Score the documents numbered `company`, the longest first, which run side by side.

        Yields what waits for each batch of chunks and fills in its intervals, as soon as the model is at it.
        """
        longest = len(prepared[company[0]].stream) - 1
        memory = self.backend.memory(len(company), longest + 1)
        past = self.backend.past(len(company), self.window) if longest > self.window else None
        plans = [prefill_chunks(len(prepared[n].stream) - 1, self.window) for n in company]
        for turn in range(len(plans[0])):
            batch = [(n, plan[turn]) for n, plan in zip(company, plans, strict=True) if turn < len(plan)]
            yield self._launch_batch(batch, memory, past, prepared, intervals, advance)

    def _companies(self, prepared: Sequence[Prepared]) -> Iterator[list[int]]:
        """Documents whose chunks run side by side, the longest first: at most _BATCH_TOKENS tokens at a time."""
        lengths = {n: len(p.stream) for n, p in enumerate(prepared) if not p.hopeless}
        limit = _BATCH_TOKENS[self.device]
        company: list[int] = []
        for n in sorted(lengths, key=lambda n: -lengths[n]):
            if company and (len(company) + 1) * min(lengths[company[0]], self.window) > limit:
                yield company
                company = []
            company.append(n)
        if company:
            yield company

    def _launch_batch(
        self,
        batch: list[tuple[int, Chunk]],
        memory: Any,
        past: Any,
        prepared: Sequence[Prepared],
        intervals: list[NDArray[np.float64]],
        advance: Advance,
    ) -> Callable[[], None]:
        """What fills in (start, frequency, bits) of the targets of the batch's chunks."""
        inputs = [prepared[n].stream[chunk.start : chunk.end] for n, chunk in batch]
        targets = [prepared[n].stream[chunk.start + 1 : chunk.end + 1] for n, chunk in batch]
        scores = self.backend.launch(inputs, targets, memory, past)

        def wait() -> None:
            found, at = scores(), 0
            for n, chunk in batch:
                count = chunk.end - chunk.start
                intervals[n][:, chunk.start : chunk.end] = found[:, at : at + count]
                at += count
                advance(len(prepared[n].original) * count / (len(prepared[n].stream) - 1))

        return wait

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Decode modelled records.

        Args:
            payloads: by document number.
            advance: told bytes of payload.
            sizes: bytes of each document where they are known: they bound what a damaged payload decodes to.

        Yields:
            (document number, original bytes), in the order in which documents end.

        Raises:
            DocumentError: a payload ends before its document.
            FormatError: a payload is not that of a document of its size.
        """
        if not payloads:
            return
        room = _cache_bytes(self.device)
        count = self._lane_count([len(payload) for payload in payloads.values()], room)
        yield from Decoding(
            self.backend, self.tokenizer, payloads, self.window, count, room, self.threads, sizes
        ).documents(advance)

    def _lane_count(self, sizes: Sequence[int], room: int) -> int:
        """How many lanes pay for payloads of so many bytes, and have room in so many bytes of memory.

        The longest document takes its time alone, so that no more lanes are needed than let the others end with it.
        """
        kind = self.device
        fewest = _FEWEST_LANES[kind]
        useful = max(1, round(sum(sizes) / max([1, *sizes]) / fewest)) * fewest
        tokens = (min(_TOKENS_A_BYTE * size + 1, self.window) for size in sorted(sizes, reverse=True))
        taken = np.cumsum([self.backend.lane_bytes(n) for n in tokens])
        fit = max(1, int(np.searchsorted(taken, room, "right")))
        return min(_MOST_LANES[kind], fit, useful, len(sizes))


def record_of(document: Prepared, intervals: NDArray[np.float64], total_bits: int, model_only: bool = False) -> Record:
    """The record of a document whose tokens have the (start, frequency, bits) float64 [3, T] of `Coder.intervals`."""
    starts, sizes = intervals[:2].astype(np.int64)
    return write_record(document, starts, sizes, intervals[2].sum(), total_bits, model_only)


def _cache_bytes(device: str) -> int:
    """What the lanes of a decoder may take together; a GPU keeps a fifth of what is free for a step."""
    if device == "cpu":
        return _CACHE_BYTES
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for what follows
    return (torch.cuda.mem_get_info(device)[0] + unused) * 4 // 5
