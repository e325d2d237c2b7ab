"""Sliding-window attention: each token sees the last `window`, however a document is cut and wherever it runs."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

import codec.exact.chunks
from codec.archive.writer import Policy
from codec.backends.cpu.backend import CpuBackend
from codec.entropy import frequencies
from codec.exact.backend import Backend
from codec.exact.chunks import CHUNK_UNIT, prefill_chunks
from codec.exact.reference import TorchBackend
from codec.pack.reader import Pack
from codec.text.coder import Coder
from codec.text.documents import prepare
from codec.text.open_coder import make_coder
from tests.codec.exact.test_model import CONFIGS, Reference, some_tokens, threads
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_pack
from trainer.data.sample import val_documents

WINDOW = EVERY_OPTION.window
LENGTHS = (5 * WINDOW + 1, 2 * WINDOW + 3, 2 * WINDOW, WINDOW + 1, WINDOW, WINDOW - 1)
ODD = replace(EVERY_OPTION, window=150)
"""A window that is no multiple of a block of keys, and longer than the rows that run at once."""


def whole(pack: Pack, tokens: torch.Tensor) -> np.ndarray:
    """(start, frequency, bits) of all tokens [T] but the first: all at once, keys beyond the window masked."""
    levels = torch.from_numpy(Reference(pack)(tokens[:-1].tolist()))
    return torch.stack([part.double() for part in frequencies.intervals(levels, tokens[1:])]).numpy()


def in_chunks(backend: Backend, documents: list[np.ndarray], window: int, chunk: int) -> list[np.ndarray]:
    """(start, frequency, bits) of documents, the longest first."""
    past = backend.past(len(documents), window)
    parts: list[list[np.ndarray]] = [[] for _ in documents]
    for at in range(0, len(documents[0]) - 1, chunk):
        running = [d for d in documents if len(d) - 1 > at]
        inputs = [d[at : min(at + chunk, len(d) - 1)] for d in running]
        found = backend.score(inputs, [d[at + 1 : at + chunk + 1] for d in running], past=past)
        for n, part in enumerate(np.split(found, np.cumsum([len(i) for i in inputs])[:-1], axis=1)):
            parts[n].append(part)
    return [np.concatenate(part, axis=1) for part in parts]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_reference_in_chunks_is_the_whole_document_under_a_mask(config):
    pack = tiny_pack(config)
    tokens = some_tokens(1, max(LENGTHS) + 1)[0]
    (found,) = in_chunks(TorchBackend(pack.exact()), [tokens.numpy()], config.window, 64)
    assert np.array_equal(found[:2], whole(pack, tokens)[:2])


@pytest.mark.parametrize("config", [EVERY_OPTION, PLAIN, ODD], ids=["every option", "plain", "odd"])
def test_kernels_in_chunks_of_any_size(config):
    """Documents of all lengths around multiples of the window, side by side."""
    model, tokens = tiny_pack(config).exact(), some_tokens(len(LENGTHS), 5 * config.window + 2).numpy()
    documents = [row[: length * config.window // WINDOW + 1] for row, length in zip(tokens, LENGTHS, strict=True)]
    expected = in_chunks(TorchBackend(model), documents, config.window, 7)
    for count, chunk in ((1, 1), (2, CHUNK_UNIT), (1, 2 * CHUNK_UNIT)):
        with threads(count):
            found = in_chunks(CpuBackend(model.weights), documents, config.window, chunk)
        for mine, reference in zip(found, expected, strict=True):
            assert np.array_equal(mine[:2], reference[:2])


def cut(coder: Coder, tokens: int) -> bytes:
    """Text of so many tokens, its end included."""
    text = b" ".join(val_documents())
    return text[: next(n for n in range(9 * tokens) if len(coder.tokenizer.encode(text[:n])) + 1 == tokens)]


def test_the_code_is_that_of_the_whole_document():
    pack = tiny_pack(EVERY_OPTION)
    coder = make_coder(pack)
    prepared = [prepare(cut(coder, length), coder.tokenizer, model_only=True) for length in LENGTHS[1::2]]
    for p, found in zip(prepared, coder.intervals(prepared), strict=True):
        assert np.array_equal(found[:2], whole(pack, torch.from_numpy(p.stream))[:2])


@pytest.mark.parametrize("window", [WINDOW, 7, 1])
def test_archives_of_either_backend_come_back_on_the_other(window):
    """Documents around multiples of the window, and slots that go far beyond it."""
    fast, slow = (make_coder(tiny_pack(EVERY_OPTION), Policy(window)) for _ in range(2))
    slow.__dict__["backend"] = TorchBackend(slow.model)
    documents = [cut(fast, length) for length in LENGTHS]
    payloads = [[r.payload for r in coder.encode(documents, model_only=True)] for coder in (fast, slow)]
    assert payloads[0] == payloads[1]
    assert payloads[0][2:4] == [fast.encode([document], model_only=True)[0].payload for document in documents[2:4]]
    for coder in (fast, slow):
        assert dict(coder.decode(dict(enumerate(payloads[0])))) == dict(enumerate(documents))


@pytest.mark.parametrize("window", [1, 63, 64, 65, 90])
@pytest.mark.parametrize("length", [0, 1, 64, 128, 129, 200])
def test_chunks_are_side_by_side(length, window):
    plan = prefill_chunks(length, window)
    assert [i for chunk in plan for i in range(chunk.start, chunk.end)] == list(range(length))
    sizes = [chunk.end - chunk.start for chunk in plan]
    assert all(size % CHUNK_UNIT == 0 and window <= size < window + CHUNK_UNIT for size in sizes[:-1])
    assert all(0 < size <= window + CHUNK_UNIT - 1 for size in sizes[-1:])


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(codec.exact.chunks).failed == 0
