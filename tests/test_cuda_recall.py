"""codec.cuda_recall: what a GPU remembers and raises is the reference's, to the bit.

Without a GPU, Triton's interpreter runs the kernels, on a few tokens (see tests/test_exact_cuda.py).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codec import frequencies, tables
from codec.backend import TorchBackend, agree
from codec.cuda_head import Head
from codec.cuda_recall import Batch, Memory
from codec.exact_cuda import CudaModel
from codec.recall import Memory as Reference
from tests.helpers import EVERY_OPTION, PLAIN, tiny_pack
from tests.test_exact_cuda import DEVICE, RECORD, split, with_columns
from tests.test_recall import TABLES

DIM, VOCABULARY, LEVELS, ROWS = 24, 50, 40_000, 64


class Documents:
    """Tokens, hidden states and levels of several documents side by side, and what the reference makes of them."""

    def __init__(self, count: int, length: int, history: int):
        generator = np.random.default_rng(count)
        few = np.minimum(generator.integers(0, VOCABULARY, (count, length)), generator.integers(2, VOCABULARY, length))
        again = np.arange(length) % 7 + np.arange(count)[:, None]  # masks of all lengths, and ties
        self.tokens = torch.from_numpy(np.where(np.arange(length) % 60 < 25, again, few)).to(DEVICE)
        shape = (count, length)
        self.hidden = torch.from_numpy(generator.integers(-16384, 16385, (*shape, DIM)) // 2 + 3000).to(DEVICE)
        self.hidden[:, length // 2 :] = self.hidden[:, : length - length // 2] + self.hidden[:, length // 2 :] // 4
        self.hidden.clamp_(-16384, 16384)
        self.hidden[0, 0] = 0
        self.steps = torch.from_numpy(generator.integers(1, 4, shape) / 2**14).to(DEVICE)
        self.levels = torch.from_numpy(generator.integers(-LEVELS, LEVELS + 1, (*shape, VOCABULARY))).to(DEVICE)
        self.targets = torch.from_numpy(generator.integers(0, VOCABULARY, shape)).to(DEVICE)
        memory, lanes = Reference(TABLES, count, DIM, DEVICE, history), torch.arange(count, device=DEVICE)
        self.raised = torch.stack(
            [
                memory.step(
                    lanes, torch.full_like(lanes, t), self.tokens[:, t],
                    (self.hidden[:, t].double(), self.steps[:, t, None]), self.levels[:, t],
                )
                for t in range(length)
            ],
            1,
        )  # fmt: skip
        rise = torch.arange(LEVELS + 1, device=DEVICE)  # a head whose levels are its products
        self._head = Head(rise, torch.from_numpy(tables.octave()).to(DEVICE), VOCABULARY)

    def check(self, memory: Memory, runs: list[tuple[int, int, int]]) -> None:
        """Take in runs of tokens (document, first, end), and compare the intervals of what follows each."""
        rows = torch.cat([d * self.tokens.shape[1] + torch.arange(t, end) for d, t, end in runs]).to(DEVICE)
        columns = np.array([(d, t, end - t, d * self.tokens.shape[1] + t) for d, t, end in runs]).T
        begins = np.cumsum(columns[2]) - columns[2]
        batch = Batch(*torch.from_numpy(np.stack((*columns, begins))).to(DEVICE))
        hidden = self.hidden.flatten(0, 1)
        operand = torch.stack(split(hidden)).to(torch.int8)
        memory.take(batch, self.tokens.flatten(), operand, self.steps.flatten())
        levels, raised, targets = (x.flatten(0, 1)[rows] for x in (self.levels, self.raised, self.targets))
        expected, plain = frequencies.intervals(raised, targets), frequencies.intervals(levels, targets)
        ones = torch.ones(max(len(rows), VOCABULARY), dtype=torch.float64, device=DEVICE)
        for at in range(0, len(rows), ROWS):
            part = slice(at, at + ROWS)
            measures = memory.measure(batch, int(columns[2].max()), at)
            products = levels[part].to(torch.int32)
            found = self._head.intervals(products, ones / tables.LOGIT_GRID, ones, targets[part], measures)
            assert torch.equal(found[0], expected[0][part])
            assert torch.equal(found[1], expected[1][part])
            assert torch.equal(found[2], plain[2][part])
            assert measures.agreement.max() == -1


@pytest.mark.parametrize("history", [8, 300])
def test_documents_in_pieces_of_any_length(history):
    """Rings that wrap, documents at different places, pieces of one token and of many, fewer rows than tokens."""
    documents = Documents(3, 130, history)
    assert (documents.raised != documents.levels).float().mean() > 0.1
    memory = Memory(TABLES, 3, DIM, VOCABULARY, 75, ROWS, torch.device(DEVICE), history=history)
    documents.check(memory, [(0, 0, 75), (2, 0, 1)])
    documents.check(memory, [(2, 1, 3), (0, 75, 80), (1, 0, 70)])
    for t in range(80, 84):
        documents.check(memory, [(1, t - 10, t - 9), (0, t, t + 1)])
    documents.check(memory, [(2, 3, 40), (1, 74, 130), (0, 84, 130)])
    documents.check(memory, [(2, 0, 30), (0, 0, 1)])  # other documents in their slots, as it were
