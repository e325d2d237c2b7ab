"""Compare a backend with the reference on inputs that reach every path of its kernels."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.entropy import range_coder
from codec.errors import CodecError
from codec.exact.backend import Backend, Decoder, Integers
from codec.exact.chunks import CHUNK_UNIT
from codec.model.config import AnyConfig
from codec.numerics.tables import TURN_DIGITS, TURN_LEVELS, TURN_ROWS
from codec.numerics.widths import total_bits


@dataclass(frozen=True)
class Trial:
    """The inputs of a comparison, in tokens. `rows` and `windows` are cut to the model's window."""

    rows: tuple[int, ...]  # lengths of sequences that are scored in one batch
    documents: tuple[
        int, ...
    ]  # lengths of documents, the longest first, for chunked prefill and for two decoding slots
    windows: tuple[int, ...]  # window lengths for the documents
    chunk: int  # tokens of a chunk


TRIALS = {
    "cpu": Trial((141, 65, 64, 7, 1), (215, 215, 20), (70,), CHUNK_UNIT),
    "cuda": Trial((141, 65, 64, 1, *[100] * 45), (331, 331, 77), (200, 48), CHUNK_UNIT),
}
"""Lengths chosen to reach every path of the kernels.

On a processor, a block of keys has 64 positions, and a thread's job has 256 tokens. Sequences have up to three
blocks, odd and even lengths, and more tokens than a job. Rings have 192 positions for chunks, 128 for decoding slots;
documents of 215 tokens wrap around both. The reference takes most of the time, some 90 ms a token of 135 million
weights, so lengths are no larger than what shows all planted faults (tests/codec/backends/test_agree.py). On a GPU, a
page of the KV cache has 128 positions. Windows take two pages and one, and wrap around both. The many rows of 100
tokens reach the kernels for large batches.
"""


SUMS = 256
"""Sums of a distribution that are compared: the whole of a large vocabulary's would take a gigabyte."""


def agree(fast: Backend, reference: Backend, config: AnyConfig, trial: Trial) -> bool:
    """Return true if a backend gives the reference's intervals for sequences and documents, and decodes the documents.

    A backend that raises an error on the way, as where a wrong symbol is looked up in a table, does not agree.

    Args:
        fast: the backend under test.
        reference: the reference for the same weights.
        config: the model's shape.
        trial: the inputs.
    """
    try:
        return _agree(fast, reference, config, trial)
    except (ArithmeticError, CodecError, LookupError, ValueError):
        return False


def _agree(fast: Backend, reference: Backend, config: AnyConfig, trial: Trial) -> bool:
    generator = np.random.default_rng(0)
    documents = [_tokens(generator, length, config.vocab_size) for length in trial.documents]
    documents[0] %= 5  # few different tokens, so that the match model has many matches
    for document in documents:
        document[document == config.end] = (config.end + 2) % config.vocab_size
        document[0], document[-1] = config.begin, config.end
    for window in sorted({_width(config, window) for window in trial.windows}):
        expected = _in_chunks(reference, documents, window, trial.chunk)
        if not _decodes(fast, documents, expected, window, total_bits(config.vocab_size)):
            return False
        if not all(map(np.array_equal, _in_chunks(fast, documents, window, trial.chunk), expected)):
            return False
    rows = [_tokens(generator, min(length, config.window) + 1, config.vocab_size) for length in trial.rows]
    rows[0] %= 5
    targets = [row[1:] if n % 2 == 0 else row[1 + len(row) // 3 :] for n, row in enumerate(rows)]
    one, other = (backend.score([row[:-1] for row in rows], targets)[:2] for backend in (fast, reference))
    if not np.array_equal(one, other) or not _sums_agree(fast, reference, documents[0][: 3 * CHUNK_UNIT], config):
        return False
    return config.restarts or _far_tokens_agree(fast, reference, documents[0], config)


def _sums_agree(fast: Backend, reference: Backend, document: Integers, config: AnyConfig) -> bool:
    """Return whether both give the same distributions behind a document, and `fast` those of single tokens.

    Solid blocks are coded with sums of distributions, here at SUMS random ones of them for each token. The tokens see a
    window of less than the document, so that rings wrap; single tokens stop a few tokens behind that.
    """
    window, order = _width(config, 48), np.arange(config.vocab_size)[::-1].copy()
    size, columns = len(document), min(SUMS, len(order))
    wanted = np.random.default_rng(1).integers(0, len(order) + 1, (size, columns))
    wanted[:, -1] = len(order)
    found = []
    for backend in (fast, reference):
        past, parts = backend.past(1, window), []
        for at in range(0, size, CHUNK_UNIT):
            chunk, own = document[at : at + CHUNK_UNIT], wanted[at : at + CHUNK_UNIT]
            cuts = np.stack((np.repeat(np.arange(len(chunk)), columns), own.flatten()))
            parts.append(backend.ordered_sums([chunk], order, past, cuts)())
        found.append(np.concatenate(parts).reshape(wanted.shape))
    if not np.array_equal(found[0], found[1]):
        return False
    stepping, slots = fast.distributions(1, window, order), np.arange(1)
    for n in range(min(window + 4, len(document))):
        sums = stepping.step(slots, document[n : n + 1], document[max(n - 1, 0)][None], np.array([n]))
        if not np.array_equal(sums[0, wanted[n]], found[0][n]):
            return False
    return True


def _far_tokens_agree(fast: Backend, reference: Backend, document: Integers, config: AnyConfig) -> bool:
    """Return whether both give the same distributions where every digit of a rotation changes.

    A rotation is a row of a table times a factor for each digit of the rest (`codec.numerics.rotary`). Keys and queries
    with the same wrong factors would give the right scores, so tokens lie on both sides of the change. Tokens before
    these were never run: their keys and values are zeros in every backend.
    """
    window, order = _width(config, 48), np.arange(config.vocab_size)
    slots, count = np.arange(1), min(6, len(document))
    for rows in {TURN_ROWS, max(config.window, TURN_ROWS)}:
        first = rows * TURN_DIGITS ** (TURN_LEVELS - 1) - count // 2
        both = [backend.distributions(1, window, order) for backend in (fast, reference)]
        for n in range(count):
            token, previous, position = document[n : n + 1], document[max(n - 1, 0)][None], np.array([first + n])
            one, other = (found.step(slots, token, previous, position).copy() for found in both)
            if not np.array_equal(one, other):
                return False
    return True


def _tokens(generator: np.random.Generator, length: int, vocabulary: int) -> Integers:
    return generator.integers(0, vocabulary, length)


def _in_chunks(backend: Backend, documents: Sequence[Integers], window: int, chunk: int) -> list[Integers]:
    """Score documents [T], the longest first, in chunks: (start, frequency) int64 [2, T - 1] of each document."""
    longest = len(documents[0])
    memory, past = backend.memory(len(documents), longest), backend.past(len(documents), window)
    parts: list[list[NDArray[np.float64]]] = [[] for _ in documents]
    for at in range(0, longest - 1, chunk):
        targets = [document[at + 1 : at + chunk + 1] for document in documents if len(document) > at + 1]
        inputs = [document[at : at + len(after)] for document, after in zip(documents, targets, strict=False)]
        found = backend.score(inputs, targets, memory, past)[:2]
        for part, of_document in zip(parts, np.split(found, np.cumsum(list(map(len, targets)))[:-1], 1), strict=False):
            part.append(of_document)
    return [np.concatenate(part, 1).astype(np.int64) for part in parts]


def _width(config: AnyConfig, window: int) -> int:
    """Return the window that tokens see; where documents begin anew behind each, a GPU takes whole chunks only."""
    return min(-(-window // CHUNK_UNIT) * CHUNK_UNIT if config.restarts else window, config.window)


def _decodes(
    backend: Backend, documents: Sequence[Integers], intervals: Sequence[Integers], window: int, bits: int
) -> bool:
    """Return true if two decoding slots decode the documents from streams of these intervals of 2^bits.

    The longest and the shortest document begin. The slot of the shortest document then takes the other documents in
    turn. In the end only one slot is left, so that a GPU has to capture its steps again.
    """
    payloads = []
    for starts, shares in intervals:
        state, out = range_coder.new_encoder(), np.empty(range_coder.MAX_SYMBOL_BYTES * len(starts) + 8, np.uint8)
        range_coder.encode_intervals(state, out, starts.copy(), shares.copy(), bits)
        payloads.append(out[: range_coder.finish(state, out)])
    ends = np.cumsum(list(map(len, payloads)))
    begins = ends - list(map(len, payloads))
    decoder = backend.decoder(2, np.concatenate(payloads), window)
    slots, waiting = [0, len(documents) - 1], deque(range(1, len(documents) - 1))
    decoder.load([0, 1], begins[slots], ends[slots])
    done = [1, 1]  # tokens of each slot's document
    while slots:
        if not _steps(decoder, [documents[n] for n in slots], done):
            return False
        for slot in [i for i, n in enumerate(slots) if done[i] == len(documents[n]) and waiting]:
            slots[slot], done[slot] = waiting.popleft(), 1
            decoder.load([slot], begins[slots[slot], None], ends[slots[slot], None])
        active = [i for i, n in enumerate(slots) if done[i] < len(documents[n])]
        if len(active) < len(slots):
            if active:
                decoder.keep(active)
            slots, done = [slots[i] for i in active], [done[i] for i in active]
    return True


def _steps(decoder: Decoder, documents: Sequence[Integers], done: list[int]) -> bool:
    """Launch the decoder once, count new tokens in `done`, and return true if every slot decoded the right tokens."""
    found = decoder.launch()()[0]
    for slot, document in enumerate(documents):
        symbols = found[:, slot][found[:, slot] >= 0]
        begin, done[slot] = done[slot], done[slot] + len(symbols)
        if not len(symbols) or not np.array_equal(symbols, document[begin : done[slot]]):
            return False
    return True
