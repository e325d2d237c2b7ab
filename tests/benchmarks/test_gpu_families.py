"""Models of open families on a GPU: every check and every time in one call.

    FAMILY_PACK=smollm2.pack FAMILY_TEXT=enwik8 python -m pytest -q -s -m "gpu or long" \
        tests/codec/backends/cuda/test_families.py tests/benchmarks/test_gpu_families.py

Without FAMILY_PACK the model has the shape of SmolLM2-135M and random weights; without FAMILY_TEXT texts are random
tokens. Prints tokens a second of scoring and of slots that decode, and how many intervals of 100,000 tokens differ from
those of the reference on the GPU, and of fewer from those of a processor.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import codec
from codec.backends.cuda.families.network import CudaTransformer
from codec.exact.families.transformer import ExactTransformer
from codec.exact.families.weights import TransformerWeights
from codec.exact.reference import TorchBackend
from codec.model.transformer import TransformerConfig, transformer_parameters
from codec.quantization.quantized import Quantized
from codec.text.open_coder import make_coder
from tests.codec.exact.test_recall import TABLES
from tests.support.families import FAMILIES, family_pack

pytestmark = pytest.mark.gpu

CHECKED = 100_000  # tokens of each family
SCORED = 1 << 19
SLOTS, STEPS = 2048, 128


def smollm(device: str) -> ExactTransformer:
    """Random weights of SmolLM2-135M's shape, of about 5 bits."""
    config, generator = TransformerConfig(), np.random.default_rng(0)
    matrices, vectors = {}, {}
    for name, parameter in transformer_parameters(config).items():
        if parameter.role == "vector":
            vectors[name] = np.ones(parameter.shape, np.float32)
            continue
        symbols = np.rint(generator.standard_normal(parameter.shape, np.float32) * 6).astype(np.int32)
        deviation = 0.5 if parameter.role == "embedding" else parameter.shape[1] ** -0.5
        matrices[name] = Quantized(symbols, np.full(parameter.shape[0], deviation / 6, np.float32))
    return ExactTransformer(TransformerWeights(config, matrices, vectors), device)


def model_of(device: str) -> ExactTransformer:
    path = os.environ.get("FAMILY_PACK")
    found = codec.open(Path(path).read_bytes()).exact(device) if path else smollm(device)
    assert isinstance(found, ExactTransformer)
    return found


def differing(fast, slow, vocabulary: int, window: int, tokens: int) -> int:
    """How many (start, frequency) of windows of random tokens differ."""
    generator, count = np.random.default_rng(0), 0
    for _ in range(0, tokens, 8 * window):
        inputs, targets = ([generator.integers(0, vocabulary, window) for _ in range(8)] for _ in range(2))
        found, expected = fast.score(inputs, targets)[:2], slow.score(inputs, targets)[:2]
        count += int((found != expected).any(0).sum())
    return count


@pytest.mark.parametrize("name", FAMILIES)
def test_no_interval_of_a_family_differs(name):
    config = replace(FAMILIES[name], window=1024)
    pack = family_pack(config)
    fast = CudaTransformer(pack.exact("cuda"))
    assert differing(fast, TorchBackend(pack.exact("cuda")), config.vocab_size, 1024, CHECKED) == 0
    assert differing(fast, TorchBackend(pack.exact("cpu")), config.vocab_size, 1024, 1) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_no_interval_with_recall_differs(name):
    """Compare fewer tokens: the reference takes one of all documents at a time."""
    config = replace(FAMILIES[name], window=256)
    model = family_pack(config).exact("cuda")
    fast, slow = CudaTransformer(model, TABLES), TorchBackend(model, TABLES)
    assert differing(fast, slow, config.vocab_size, 256, 1) == 0


def test_the_real_shape():
    model = model_of("cuda")
    c, fast = model.config, CudaTransformer(model)
    assert differing(fast, TorchBackend(model), c.vocab_size, min(c.window, 1024), CHECKED) == 0
    generator = np.random.default_rng(1)
    length = min(c.window, 2048)
    batch = [generator.integers(0, c.vocab_size, length) for _ in range(32)]
    fast.score(batch, batch)
    torch.cuda.synchronize()
    begin, done = time.perf_counter(), 0
    while done < SCORED:
        fast.launch(batch, batch)()
        done += 32 * length
    print(f"\nscored {done / (time.perf_counter() - begin):,.0f} tokens a second, windows of {length}")
    data = generator.integers(0, 256, SLOTS * 4096).astype(np.uint8)
    decoder = fast.decoder(SLOTS, data, length)
    starts = np.arange(SLOTS) * 4096
    decoder.load(range(SLOTS), starts, starts + 4096)
    decoder.launch()()
    begin, done = time.perf_counter(), 0
    while done < SLOTS * STEPS:
        done += int((decoder.launch()()[0] >= 0).sum())
    print(f"decoded {done / (time.perf_counter() - begin):,.0f} tokens a second, {SLOTS} slots from position 0")


def test_texts_come_back():
    """FAMILY_TEXT in pieces of 8 KiB, coded and decoded again; needs FAMILY_PACK."""
    if not (os.environ.get("FAMILY_PACK") and os.environ.get("FAMILY_TEXT")):
        pytest.skip("needs FAMILY_PACK and FAMILY_TEXT")
    pack = codec.open(Path(os.environ["FAMILY_PACK"]).read_bytes())
    text = Path(os.environ["FAMILY_TEXT"]).read_bytes()[: 1 << 25]
    pieces = [text[at : at + 8192] for at in range(0, len(text), 8192)]
    coder = make_coder(pack, device="cuda")
    coder.start()
    begin = time.perf_counter()
    records = coder.encode(pieces, model_only=True)
    middle = time.perf_counter()
    found = dict(coder.decode({n: record.payload for n, record in enumerate(records)}))
    end = time.perf_counter()
    assert [found[n] for n in range(len(pieces))] == pieces
    tokens, size = sum(record.tokens for record in records), sum(len(record.payload) for record in records)
    print(
        f"\n{8 * size / len(text):.4f} bits a byte; {tokens / (middle - begin):,.0f} tokens a second encoded, ", end=""
    )
    print(f"{tokens / (end - middle):,.0f} decoded, {tokens:,} in all")
