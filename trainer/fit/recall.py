"""Fit the match model's tables (`codec.exact.recall`) to text: one pass, the code length's gradient after every token.

The tables learn how far repeats within a document predict its next token, beyond the model. So the text should be as
new to the model as the text to be coded; on text of its training set the tables learn too little. The rate of each
entry falls as in AdaGrad (Duchi, Hazan and Singer 2011).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from codec.backends.cpu import recall as cpu_recall
from codec.compiled import kernel
from codec.console import Advance, ignore_progress
from codec.exact.chunks import prefill_chunks
from codec.exact.recall import SHAPES, UNIT, Recall
from codec.numerics import tables
from codec.numerics.tables import LEVELS_PER_BIT
from codec.numerics.widths import total_bits
from codec.pack.reader import Pack

_RATE = 0.1  # bits


@dataclass(frozen=True)
class Fitted:
    """Tables, and the bits of the text without the tables and while they were learned."""

    recall: Recall
    tokens: int
    text_bytes: int
    bits_without: float
    bits_with: float


def fit_recall(
    pack: Pack, documents: Iterable[bytes], tokens: int, device: str = "cpu", advance: Advance = ignore_progress
) -> Fitted:
    """Fit the tables to the first documents with `tokens` tokens in all.

    Args:
        pack: the model, with its tokenizer.
        documents: text that the model has not been trained on.
        tokens: number of tokens.
        device: "cpu" or "cuda".
        advance: called with the tokens of each document.

    Raises:
        MismatchError: the pack holds weights only.
    """
    model = pack.exact(device)
    assert pack.tokenizer  # pack.exact has checked
    window, dim = model.config.window, model.config.model_dim
    shapes = list(SHAPES.values())
    learned = np.zeros((sum(rows for rows, _ in shapes), shapes[0][1]))
    squares = np.ones_like(learned)
    memory = cpu_recall.new_memory(_as_tables(learned), 1, dim)
    exp2 = tables.exp2_table(total_bits(model.config.vocab_size)).astype(np.int32)
    bits, seen, size = np.zeros(2), 0, 0
    for document in documents:
        found = pack.tokenizer.encode(document).astype(np.int64)
        stream = np.concatenate(([pack.tokenizer.begin], found, [pack.tokenizer.end]))
        past = model.new_past(1, window)
        for w in prefill_chunks(len(stream) - 1, window):
            inputs = torch.from_numpy(stream[None, w.start : w.end]).to(model.device)
            hidden, steps = (part[0] for part in model.forward(inputs, past=past))
            bits += _fit(
                memory, np.arange(w.start, w.end), stream[w.start : w.end + 1],
                hidden.to(torch.int32).cpu().numpy(), steps[:, 0].cpu().numpy(),
                model.levels(hidden, steps).to(torch.int32).cpu().numpy(), exp2, learned, squares,
            )  # fmt: skip
        seen, size = seen + len(stream) - 1, size + len(pack.tokenizer.decode(found))
        advance(len(stream) - 1)
        if seen >= tokens:
            break
    return Fitted(_as_tables(learned), seen, size, *bits.tolist())


def _as_tables(learned: np.ndarray) -> Recall:
    """Round the entries [rows, columns], in bits, to tables."""
    entries = np.rint(learned * (LEVELS_PER_BIT // UNIT)).clip(-128, 127).astype(int)
    parts = np.split(entries, np.cumsum([rows for rows, _ in SHAPES.values()])[:-1])
    return Recall(**{name: part.tolist() for name, part in zip(SHAPES, parts, strict=True)})


@kernel
def _fit(memory, positions, stream, hidden, steps, levels, exp2, learned, squares):
    """Update the entries `learned`, in bits, with rows of one document, in which stream[i + 1] follows row i.

    Returns:
        (bits without recall, bits with recall), float64 [2].
    """
    vocabulary, dim = levels.shape[1], hidden.shape[1]
    agreement, similarity = np.empty(vocabulary, np.int32), np.empty(vocabulary, np.int32)
    cpu_recall.clear(agreement, similarity)
    places, weights = np.empty((vocabulary, 4), np.int64), np.empty((vocabulary, 2))
    gradient, bits = np.zeros_like(learned), np.zeros(2)
    for i in range(len(levels)):
        used = cpu_recall.see(memory, 0, positions[i], stream[i], hidden[i], steps[i], agreement, similarity)
        row, target, count = levels[i], stream[i + 1], 0
        top = row.max()
        before = cpu_recall.total_weight(row, top, exp2)
        total, factor = np.float64(before), 1.0
        for w in memory.followers[0, :used]:
            if agreement[w] < 0:
                continue
            weight = exp2[min(top - row[w], len(exp2) - 1)]
            c = cpu_recall.column(weight, before)
            a, b, d = cpu_recall.rows(agreement[w], similarity[w], dim)
            raised = 2.0 ** (learned[a, c] + learned[b, c] + learned[d, c])
            total += weight * (raised - 1.0)
            places[count, 0], places[count, 1], places[count, 2], places[count, 3] = a, b, d, c
            weights[count, 0], weights[count, 1] = weight * raised, 1.0 if w == target else 0.0
            factor = raised if w == target else factor
            count += 1
            agreement[w], similarity[w] = -1, cpu_recall.NEVER
        own = max(exp2[min(top - row[target], len(exp2) - 1)], 1)
        bits[0] -= np.log2(own / before)
        bits[1] -= np.log2(own * factor / total)
        for k in range(count):
            for r in places[k, :3]:
                gradient[r, places[k, 3]] += weights[k, 1] - weights[k, 0] / total
        for k in range(count):
            for r in places[k, :3]:
                g = gradient[r, places[k, 3]]
                squares[r, places[k, 3]] += g * g
                learned[r, places[k, 3]] += _RATE * g / np.sqrt(squares[r, places[k, 3]])
                gradient[r, places[k, 3]] = 0.0
    return bits
