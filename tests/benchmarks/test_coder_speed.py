"""How fast the shipped model codes text on this processor, beside the reference. `make bench` runs and prints it."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import codec
from codec.backends.cpu.backend import CpuSlots
from codec.exact.reference import TorchBackend
from codec.text.coder import Coder
from codec.text.open_coder import make_coder
from trainer.data.sample import val_documents

PACK = Path(__file__).resolve().parents[2] / "artifacts" / "models" / "small.pack"


def step_seconds(coder: Coder, count: int) -> float:
    """The least time of a step of `count` slots that are at their 200th token."""
    slots, generator = CpuSlots(coder.backend, count, coder.window), np.random.default_rng(0)
    row, times = generator.integers(2, 2048, count), []
    for _ in range(10):
        begin = time.perf_counter()
        slots.step(np.arange(count), row, row, np.full(count, 200), row)
        times.append(time.perf_counter() - begin)
    return min(times)


def measure(coder: Coder, documents: list[bytes]) -> tuple[float, float]:
    """Tokens a second, to encode and to decode."""
    coder.encode(documents[:1])  # builds the backend, and compiles it once
    begin = time.perf_counter()
    records = coder.encode(documents, model_only=True)
    encoded = time.perf_counter() - begin
    payloads = {n: record.payload for n, record in enumerate(records)}
    begin = time.perf_counter()
    assert dict(coder.decode(payloads)) == dict(enumerate(documents))
    decoded = time.perf_counter() - begin
    tokens = sum(record.tokens for record in records)
    return tokens / encoded, tokens / decoded


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_coder_speed():
    pack = codec.open(PACK.read_bytes())
    fast, slow = make_coder(pack), make_coder(pack)
    slow.__dict__["backend"] = TorchBackend(slow.model)
    documents = list(val_documents())
    beginnings = [document[:400] for document in documents[:64]]
    print(f"\n{PACK.name}, {torch.get_num_threads()} threads")
    rates = []
    for name, coder, texts in (
        ("all documents", fast, documents),
        ("64 beginnings", fast, beginnings),
        ("64 beginnings, reference", slow, beginnings),
    ):
        rates.append(measure(coder, texts))
        kilobytes = sum(map(len, texts)) / sum(len(pack.tokenizer.encode(text)) + 1 for text in texts) / 1000
        for way, rate in zip(("encode", "decode"), rates[-1], strict=True):
            print(f"{name:26}{way:8}{rate:7.0f} tokens/s {rate * kilobytes:6.1f} kB/s")
    ratios = [a / b for a, b in zip(rates[1], rates[2], strict=True)]
    print(f"times the reference: encode {ratios[0]:.1f}, decode {ratios[1]:.1f}")
    for count in (1, 12, 64, 128):
        print(f"a step of {count:3} slots: {1000 * step_seconds(fast, count):.2f} ms")
    assert min(ratios) > 2
