"""codec.backends.cuda.recall: what a GPU remembers and raises is the reference's, to the bit.

Without a GPU, Triton's interpreter runs the kernels, on a few tokens (see tests/codec/backends/cuda/test_backend.py).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import codec
from codec.archive.writer import Policy
from codec.backends.agree import TRIALS, Trial, agree
from codec.backends.cuda import slots as cuda_slots
from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.kernels.head import Head
from codec.backends.cuda.recall import Batch, Memory
from codec.entropy import frequencies
from codec.exact.chunks import CHUNK_UNIT, prefill_chunks
from codec.exact.model import ExactModel
from codec.exact.recall_memory import Memory as Reference
from codec.exact.reference import TorchBackend
from codec.model.config import ModelConfig
from codec.numerics import tables
from codec.pack.change import with_recall
from codec.text.open_coder import make_coder
from codec.text.policy import Adaptation
from codec.text.scheduler import Decoding
from tests.codec.backends.cuda.test_backend import DEVICE, RECORD, split, with_columns
from tests.codec.exact.test_recall import TABLES
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_blob, tiny_pack
from trainer.data.sample import val_documents

LEVELS = 40_000


class Documents:
    """Tokens, hidden states and levels of several documents side by side, and what the reference makes of them."""

    def __init__(self, count: int, length: int, history: int, dim: int, vocabulary: int):
        generator, shape = np.random.default_rng(count), (count, length)
        few = np.minimum(generator.integers(0, vocabulary, shape), generator.integers(2, vocabulary, length))
        again = np.arange(length) % 7 + np.arange(count)[:, None]  # masks of all lengths, and ties
        self.tokens = torch.from_numpy(np.where(np.arange(length) % 40 < 25, again, few)).to(DEVICE)
        hidden = generator.integers(-16384, 16385, (*shape, dim)) // 2 + 3000
        hidden[:, length // 2 :] = hidden[:, : length - length // 2] + hidden[:, length // 2 :] // 4
        hidden[0, 0] = 0
        self.hidden = torch.from_numpy(hidden.clip(-16384, 16384)).to(DEVICE)
        self.steps = torch.from_numpy(generator.integers(1, 4, shape) / 2**14).to(DEVICE)
        self.levels = torch.from_numpy(generator.integers(-LEVELS, LEVELS + 1, (*shape, vocabulary))).to(DEVICE)
        self.targets = torch.from_numpy(generator.integers(0, vocabulary, shape)).to(DEVICE)
        memory, slots = Reference(TABLES, count, dim, DEVICE, history), torch.arange(count, device=DEVICE)
        raised = [
            memory.step(
                slots, torch.full_like(slots, t), self.tokens[:, t],
                (self.hidden[:, t].double(), self.steps[:, t, None]), self.levels[:, t],
            )
            for t in range(length)
        ]  # fmt: skip
        self.raised = torch.stack(raised, 1)
        rise = torch.arange(LEVELS + 1, device=DEVICE)  # a head whose levels are its products
        rows = torch.ones(vocabulary, dtype=torch.float64, device=DEVICE)
        self._head = Head(replace(PLAIN, vocab_size=vocabulary), rows, rise)

    def check(self, memory: Memory, rows: int, runs: list[tuple[int, int, int]]) -> None:
        """Take in runs of tokens (document, first, end), and compare the intervals of what follows each.

        `rows` are measured at once.
        """
        length = self.tokens.shape[1]
        columns = np.array([(d, t, end - t, d * length + t) for d, t, end in runs]).T
        batch = Batch(*torch.from_numpy(np.stack((*columns, np.cumsum(columns[2]) - columns[2]))).to(DEVICE))
        operand = torch.stack(split(self.hidden.flatten(0, 1))).to(torch.int8)
        memory.take(batch, self.tokens.flatten(), operand, self.steps.flatten())
        index = torch.cat([d * length + torch.arange(t, end) for d, t, end in runs]).to(DEVICE)
        levels, raised, targets = (x.flatten(0, 1)[index] for x in (self.levels, self.raised, self.targets))
        expected, plain = frequencies.intervals(raised, targets), frequencies.intervals(levels, targets)
        ones = torch.ones(rows, dtype=torch.float64, device=DEVICE)
        for at in range(0, len(index), rows):
            part = slice(at, at + rows)
            measures = memory.measure(batch, int(columns[2].max()), at)
            products = levels[part].to(torch.int32)
            found = self._head.intervals(products, ones[: len(products)] / tables.LOGIT_GRID, targets[part], measures)
            assert torch.equal(found[0], expected[0][part])
            assert torch.equal(found[1], expected[1][part])
            assert torch.equal(found[2], plain[2][part])
            assert measures.agreement.max() == -1


@pytest.mark.parametrize("history", [8, pytest.param(300, marks=pytest.mark.long)])
def test_documents_in_pieces(history):
    """Rings that wrap, documents at different places, pieces of one token and of many, fewer rows than tokens."""
    documents = Documents(2, 56, history, 24, 40)
    assert (documents.raised != documents.levels).float().mean() > 0.1
    memory = Memory(TABLES, 2, 24, 40, 25, 16, torch.device(DEVICE), history=history)
    for runs in ([(1, 0, 1), (0, 0, 25)], [(1, 1, 3)], [(1, 3, 4), (0, 25, 26)], [(0, 26, 40), (1, 4, 9)]):
        documents.check(memory, 16, runs)
    documents.check(memory, 16, [(0, 40, 56), (1, 0, 8)])  # another document begins in the second slot


@pytest.mark.gpu
@pytest.mark.parametrize("history, tokens", [(100, 1 << 62), (8192, 900)])
def test_many_documents_in_pieces(history, tokens):
    documents = Documents(8, 900, history, 512, 8192)
    memory = Memory(TABLES, 8, 512, 8192, 500, 1024, torch.device(DEVICE), tokens, history)
    at = np.zeros(8, int)
    generator = np.random.default_rng(0)
    while (at < 900).any():
        ends = np.minimum(at + generator.integers(1, 3 if at[0] % 2 else 501, 8), 900)
        runs = [(d, t, end) for d, t, end in zip(range(8), at.tolist(), ends.tolist(), strict=True) if t < end]
        documents.check(memory, 1024, runs)
        at = ends


def check_chunks(model: ExactModel, lengths: list[int], window: int) -> None:
    """Intervals of documents scored chunk by chunk are the reference's, and recall changes them."""
    generator = np.random.default_rng(2)
    streams = [np.append(generator.integers(0, 20, length), [0]) for length in sorted(lengths, reverse=True)]
    plans = [prefill_chunks(len(stream) - 1, window) for stream in streams]
    backends = CudaBackend(model, TABLES), TorchBackend(model, TABLES)
    states = [(b.memory(len(streams), len(streams[0])), b.past(len(streams), window)) for b in backends]
    plain, past = TorchBackend(model), TorchBackend(model).past(len(streams), window)
    changed = False
    for turn in range(len(plans[0])):
        chunks = [(s, plan[turn]) for s, plan in zip(streams, plans, strict=True) if turn < len(plan)]
        inputs = [s[c.start : c.end] for s, c in chunks]
        targets = [s[c.start + 1 : c.end + 1] for s, c in chunks]
        found, expected = (b.score(inputs, targets, *state) for b, state in zip(backends, states, strict=True))
        assert np.array_equal(found[:2], expected[:2])
        assert np.abs(found[2] - expected[2]).max() < 1e-9
        changed |= bool((found[1] != plain.score(inputs, targets, past=past)[1]).any())
    assert changed


def check_decoding(config: ModelConfig, sizes: tuple[int, ...], policy: Policy) -> None:
    """Archives of the processor come back."""
    pack = codec.open(with_recall(tiny_blob(config), TABLES))
    coder = make_coder(pack, policy)
    documents = [d[:n] for n, d in zip(sizes, val_documents(), strict=False)]
    payloads = dict(enumerate(r.payload for r in coder.encode(documents, model_only=True)))
    backend, slots = CudaBackend(pack.exact(DEVICE), pack.recall), len(sizes)
    decoding = Decoding(backend, coder.tokenizer, payloads, policy.window, slots, 0, threads=2)
    assert dict(decoding.documents(lambda _: None)) == dict(enumerate(documents))


def test_a_pack_scores_as_the_reference_does():
    check_chunks(tiny_pack(replace(PLAIN, num_layers=1)).exact(DEVICE), [9], 32)


def test_a_document_decodes(monkeypatch):
    monkeypatch.setattr(cuda_slots, "STEPS", 2)
    check_decoding(replace(PLAIN, num_layers=1), (8,), Policy(4, Adaptation.RECALL))


@pytest.mark.long
@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_chunks_in_turn(config):
    check_chunks(with_columns(config), [9], 32)
    check_chunks(tiny_pack(config).exact(DEVICE), [140, 70, 64], 32)


@pytest.mark.long
def test_documents_decode_on_fewer_slots(monkeypatch):
    """Slots that go far beyond a window, and are dropped once half of them idle."""
    monkeypatch.setattr(cuda_slots, "STEPS", 4)
    check_decoding(replace(PLAIN, num_layers=1), (1, 16, 0, 9), Policy(8, Adaptation.RECALL))


@pytest.mark.long
def test_backends_agree():
    model = tiny_pack(replace(PLAIN, window=80, num_layers=1)).exact(DEVICE)
    trial = Trial((100, 7), (CHUNK_UNIT + 6, 20), (80, 48), CHUNK_UNIT)
    assert agree(CudaBackend(model, TABLES), TorchBackend(model, TABLES), model.config, trial)


@pytest.mark.gpu
def test_record_class():
    """Scores and slots of a whole graph, of few tokens: the reference measures one at a time."""
    model = with_columns(replace(RECORD, window=256))
    check_chunks(model, [600, 90], 256)
    assert agree(CudaBackend(model, TABLES), TorchBackend(model, TABLES), model.config, TRIALS["cuda"])
