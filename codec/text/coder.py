"""Code documents with the exact model: batches of chunks to encode, decoding slots that step together to decode.

The encoder knows every token, so the model runs whole chunks of many documents in a batch (chunked prefill). The
decoder knows only the tokens decoded so far, so the model runs one token of many documents at a time. Each document has
a decoding slot: a ring of the KV cache that keeps the last `window` tokens. A slot whose document has ended takes the
next document (continuous batching). Exact arithmetic gives the same integers both ways.

A token sees the last `window` tokens (sliding-window attention). Keys and values of a token are computed once, so a
token of the second layer sees, through the keys of the first, up to two windows back, and so on.
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
from codec.compiled import check_beside
from codec.console import Advance, ignore_progress
from codec.devices import thread_pool
from codec.exact.backend import Backend
from codec.exact.chunks import CHUNK_UNIT, Chunk, prefill_chunks
from codec.exact.families.weights import AnyWeights
from codec.exact.recall import Recall
from codec.model.byte_pairs import AnyTokenizer
from codec.numerics.widths import total_bits
from codec.startup import starting
from codec.text.documents import Prepared, Record, prepare, write_record
from codec.text.golden import check_once as check_golden
from codec.text.pipeline import GroupReader, _Group, _Part
from codec.text.scheduler import Decoding

if TYPE_CHECKING:
    from codec.exact.families.transformer import AnyExact

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
_PART_BYTES = {"cpu": 1 << 17, "cuda": 1 << 23}  # of text that is prepared while the part before it runs: some batches
_LEAST_BYTES = {"cpu": 1 << 17, "cuda": 1 << 18}  # of the first part and the last, which nothing else runs beside
_TASK_BYTES = 1 << 14  # of the documents that a thread takes at once: handing over a task takes 15 microseconds
_RUNNING = {"cpu": 1, "cuda": 4}
"""Entries that stay in the queue when the device is given one more batch: waits for batches, and writers of their
records. Four are those of two batches of whole documents."""

_GROUPS = 2  # whose documents are in memory, and the next
_CACHE_BYTES = 1 << 30  # of the KV cache of a processor's slots
MOST_SLOTS = {"cpu": 128, "cuda": 4096}
FEWEST_SLOTS = {"cpu": 16, "cuda": 1024}  # that make a token as cheap as many do: two tiles of 4 rows for 2 processors

_Intervals = list[NDArray[np.float64]]  # of a document's chunks so far, float64 [3, tokens] each

_TOKENS_A_BYTE = 2
"""Tokens for each byte of a payload, about: 1.9 with the record-class model's 8,192 tokens, 2.1 with a vocabulary of
1,024 and with the pack that ships."""


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
        """Return the power of two that the frequencies of a distribution sum to."""
        return total_bits(self.weights.config.vocab_size)

    @cached_property
    @starting()
    def backend(self) -> Backend:
        """Return the backend that runs the exact model. Raises CodecError where `codec.text.golden.check` does."""
        check_beside(text="codec.text.golden", blocks="codec.text.solid.golden")
        made = make_backend(self.weights, self.device, self.recall)
        check_golden()
        return made

    @cached_property
    def model(self) -> "AnyExact":
        """Return the reference model on torch, which a fast backend does without."""
        from codec.exact.families.transformer import exact_model

        return exact_model(self.weights, self.device)

    @starting()
    def start(self, advance: Advance = ignore_progress) -> None:
        """Compile, and make the backend; see `codec.text.base.DocumentCoder.start`."""
        _ = self.backend  # made when it is first asked for
        advance(0)

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents.

        Args:
            documents: any bytes.
            model_only: code every document with the model, also where a general compressor needs fewer bytes.
            advance: called with bytes of text that are done.
        """
        found = [records for _, records in self.encode_groups(iter(documents), sys.maxsize, model_only, advance)]
        return found[0] if found else []

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """Code documents in groups. A group ends as soon as it has `limit` bytes; the records are those of `encode`.

        While the model runs one part of the documents, threads prepare the next part and write the records of the part
        before. Parts cross the ends of groups, so the model never waits for a group to end. A GPU is given the next
        batch before the result of the last one is waited for, and documents are read while the GPU runs.

        Args:
            documents: any bytes, read as they are needed.
            limit: bytes of a group.
            model_only: as of `encode`.
            advance: as of `encode`.

        Yields:
            (documents, records) of each group, in order. Where reading fails, all groups before the failure come first.
        """
        # In launch order: waits for batches; behind the waits of some documents, a function that writes their records.
        running: deque[Callable[[], None]] = deque()
        begun: deque[_Group] = deque()
        with thread_pool(self.threads) as pool:

            def record(
                part: _Part, members: Sequence[int], prepared: Sequence[Prepared], intervals: Sequence[_Intervals]
            ) -> None:
                for task in _tasks(members, [len(prepared[n].original) for n in members]):
                    given = [(prepared[n], intervals[n]) for n in task]
                    future = pool.submit(_records_of, given, self.total_bits, model_only)
                    part.group.add([part.numbers[n] for n in task], future)

            for part in self._prepare_ahead(GroupReader(documents, limit), pool, model_only):
                if part.group not in begun:
                    begun.append(part.group)
                prepared = [p for future in part.prepared for p in future.result()]
                intervals: list[_Intervals] = [[] for _ in prepared]
                hopeless = [n for n, p in enumerate(prepared) if p.hopeless]
                advance(sum(len(prepared[n].original) for n in hopeless))
                record(part, hopeless, prepared, intervals)
                for members in self._batches(prepared):
                    for wait in self._launch(members, prepared, intervals, advance):
                        running.append(wait)
                        while len(running) > _RUNNING[self.device]:
                            running.popleft()()
                    running.append(partial(record, part, members, prepared, intervals))
                # Drain when the input ends or many groups are open: otherwise a group that launches nothing, or one
                # slow record, would keep finished groups in memory.
                while running and (part.last or len(begun) > _GROUPS):
                    running.popleft()()
                while begun and (begun[0].done or part.last or len(begun) > _GROUPS):
                    yield begun.popleft().result()

    def _prepare_ahead(self, ahead: GroupReader, pool: ThreadPoolExecutor, model_only: bool) -> Iterator[_Part]:
        """Yield the parts of all groups in turn; when a part is yielded, threads already prepare the next one."""
        before = None
        while documents := ahead.take():
            group = _Group(documents)
            for numbers in self._parts(documents, first=before is None, last=ahead.ended):
                futures = [
                    pool.submit(_prepare_all, [documents[n] for n in task], self.tokenizer, model_only)
                    for task in _tasks(numbers, [len(documents[n]) for n in numbers])
                ]
                if before:
                    yield before
                before = _Part(group, numbers, futures)
                ahead.read(sum(len(documents[n]) for n in numbers))
        if before:
            yield replace(before, last=True)
        if ahead.failure:
            raise ahead.failure

    def _parts(self, documents: Sequence[bytes], first: bool, last: bool) -> list[list[int]]:
        """Return the numbers of a group's documents in parts, the longest document first, as `_batches` takes them.

        Parts grow from _LEAST_BYTES to _PART_BYTES in the first group, and shrink again in the last group.
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
        """Return the intervals float64 [3, T + 1] of every document: (start, frequency, bits) of tokens and the end.

        The intervals of a hopeless document are zeros. `advance` is called with bytes of text.
        """
        intervals: list[_Intervals] = [[] for _ in prepared]
        for members in self._batches(prepared):
            for wait in self._launch(members, prepared, intervals, advance):
                wait()
        return [_joined(p, found) for p, found in zip(prepared, intervals, strict=True)]

    def _launch(
        self,
        members: Sequence[int],
        prepared: Sequence[Prepared],
        intervals: Sequence[_Intervals],
        advance: Advance,
    ) -> Iterator[Callable[[], None]]:
        """Score a batch of documents that run together: those numbered `members`, the longest first.

        Yields:
            for each launched batch of chunks, a function that waits for the scores and adds them to `intervals`.
        """
        longest = len(prepared[members[0]].stream) - 1
        memory = self.backend.memory(len(members), longest + 1)
        past = self.backend.past(len(members), self.window) if longest > self.window else None
        plans = [prefill_chunks(len(prepared[n].stream) - 1, self.window) for n in members]
        for turn in range(len(plans[0])):
            batch = [(n, plan[turn]) for n, plan in zip(members, plans, strict=True) if turn < len(plan)]
            yield self._launch_batch(batch, memory, past, prepared, intervals, advance)

    def _batches(self, prepared: Sequence[Prepared]) -> Iterator[list[int]]:
        """Yield batches of documents that run together, the longest first: at most _BATCH_TOKENS tokens in a step."""
        lengths = {n: len(p.stream) - 1 for n, p in enumerate(prepared) if not p.hopeless}
        numbers = sorted(lengths, key=lambda n: -lengths[n])
        longer = sum(not self.backend.packs or lengths[n] > self.window for n in numbers)
        yield from self._side_by_side(numbers[:longer], lengths)
        members: list[int] = []
        rows = 0
        for n in numbers[longer:]:  # one behind another
            own = -(-lengths[n] // CHUNK_UNIT) * CHUNK_UNIT
            if members and rows + own > _BATCH_TOKENS[self.device]:
                yield members
                members, rows = [], 0
            members.append(n)
            rows += own
        if members:
            yield members

    def _side_by_side(self, numbers: Sequence[int], lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Yield batches of documents, the longest first, whose chunks run side by side, or of a single document.

        On a processor, whose threads take a document each, more documents join until all threads have equally many, if
        their caches fit.
        """
        limit, together = _BATCH_TOKENS[self.device], self.threads if self.device == "cpu" else 1
        members: list[int] = []
        for n in numbers:
            count, tokens = len(members), min(lengths[members[0]] + 1, self.window) if members else 0
            fits = (count + 1) * self.backend.slot_bytes(tokens) <= _CACHE_BYTES
            if (count + 1) * tokens > limit and not (count % together and fits):
                yield members
                members = []
            members.append(n)
        if members:
            yield members

    def _launch_batch(
        self,
        batch: list[tuple[int, Chunk]],
        memory: Any,
        past: Any,
        prepared: Sequence[Prepared],
        intervals: Sequence[_Intervals],
        advance: Advance,
    ) -> Callable[[], None]:
        """Launch a batch of chunks; return a function that waits for the scores and adds them to `intervals`."""
        inputs = [prepared[n].stream[chunk.start : chunk.end] for n, chunk in batch]
        targets = [prepared[n].stream[chunk.start + 1 : chunk.end + 1] for n, chunk in batch]
        scores = self.backend.launch(inputs, targets, memory, past)

        def wait() -> None:
            found, at, done = scores(), 0, 0.0
            for n, chunk in batch:
                count = chunk.end - chunk.start
                intervals[n].append(found[:, at : at + count])
                at += count
                done += len(prepared[n].original) * count / (len(prepared[n].stream) - 1)
            advance(done)

        return wait

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Decode modelled records.

        Args:
            payloads: the payload of each record, by document number.
            advance: called with bytes of payload that are done.
            sizes: the bytes of each document, where they are known: a bound on what a damaged payload decodes to.

        Yields:
            (document number, original bytes), in the order in which documents end.

        Raises:
            DocumentError: a payload ends before its document.
            FormatError: a payload is not that of a document of its size.
        """
        if not payloads:
            return
        room = _cache_bytes(self.device)
        count = self._slot_count([len(payload) for payload in payloads.values()], room)
        yield from Decoding(
            self.backend, self.tokenizer, payloads, self.window, count, room, self.threads, sizes
        ).documents(advance)

    def _slot_count(self, sizes: Sequence[int], room: int) -> int:
        """Return how many decoding slots pay for payloads of `sizes` bytes, with caches that fit into `room` bytes.

        The longest document takes its time alone. So there are no more slots than let the other documents end with it.
        """
        kind = self.device
        fewest = FEWEST_SLOTS[kind]
        useful = max(1, round(sum(sizes) / max([1, *sizes]) / fewest)) * fewest
        tokens = (min(_TOKENS_A_BYTE * size + 1, self.window) for size in sorted(sizes, reverse=True))
        taken = np.cumsum([self.backend.slot_bytes(n) for n in tokens])
        fit = max(1, int(np.searchsorted(taken, room, "right")))
        return min(MOST_SLOTS[kind], fit, useful, len(sizes))


def record_of(document: Prepared, intervals: NDArray[np.float64], total_bits: int, model_only: bool = False) -> Record:
    """Return the record of a document whose tokens have the intervals float64 [3, T] of `Coder.intervals`."""
    starts, sizes = intervals[:2].astype(np.int64)
    return write_record(document, starts, sizes, intervals[2].sum(), total_bits, model_only)


def _records_of(given: Sequence[tuple[Prepared, _Intervals]], total_bits: int, model_only: bool) -> list[Record]:
    return [record_of(document, _joined(document, found), total_bits, model_only) for document, found in given]


def _prepare_all(documents: Sequence[bytes], tokenizer: AnyTokenizer, model_only: bool) -> list[Prepared]:
    return [prepare(document, tokenizer, model_only) for document in documents]


def _joined(document: Prepared, found: _Intervals) -> NDArray[np.float64]:
    """Return the intervals float64 [3, T + 1] of a document; zeros where the model was not asked."""
    return np.concatenate(found, axis=1) if found else np.zeros((3, len(document.stream) - 1))


def _tasks(numbers: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return documents of so many bytes each in tasks, by number: a task ends as soon as it has _TASK_BYTES."""
    tasks: list[list[int]] = []
    room = 0
    for n, size in zip(numbers, sizes, strict=True):
        if room <= 0:
            tasks.append([])
            room = _TASK_BYTES
        tasks[-1].append(n)
        room -= size
    return tasks


def _cache_bytes(device: str) -> int:
    """Return the bytes that a decoder's KV cache may take; on a GPU a fifth of the free memory is left for the step."""
    if device == "cpu":
        return _CACHE_BYTES
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for what follows
    return (torch.cuda.mem_get_info(device)[0] + unused) * 4 // 5
