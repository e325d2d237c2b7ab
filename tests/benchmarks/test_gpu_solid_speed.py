"""How fast a GPU encodes and decodes solid blocks with the pack that ships, and what a step takes without the mixing.

python3 -m pytest -s -m benchmark tests/benchmarks/test_gpu_solid_speed.py

Blocks are of validation text, each from another place. A round on short blocks compiles everything before.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch

import codec
from codec.text.open_coder import make_coder
from codec.text.solid.coder import SolidCoder
from codec.text.solid.mixed_decoder import _SLOTS, decode
from tests.support.helpers import ROOT
from trainer.data.sample import val_documents

PACK = ROOT / "artifacts" / "models" / "small.pack"

BLOCKS, SIZE = 48, 1 << 17
"""Eight segments each: 384 streams."""

STEPS = 200

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds and the result."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    found = work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, found


@pytest.mark.benchmark
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_solid_blocks():
    text = b"\n".join(val_documents())
    text *= 1 + 2 * SIZE // len(text)
    blocks = [text[n * 7919 % (len(text) - SIZE) :][:SIZE] for n in range(BLOCKS)]
    coder = SolidCoder(make_coder(codec.open(PACK.read_bytes()), device="cuda"))
    mixing = coder._mixing
    assert mixing is not None
    short = [block[:9000] for block in blocks[:4]]
    payloads = [found.data for found in mixing.encode(short) if found]
    assert dict(decode(mixing, {n: (payload, 9000) for n, payload in enumerate(payloads)})) == dict(enumerate(short))

    tokens = sum(len(mixing.tokenizer.encode(block)) for block in blocks)
    encoding, payloads = timed(lambda: [found.data for found in mixing.encode(blocks) if found])
    todo = {n: (payload, SIZE) for n, payload in enumerate(payloads)}
    decoding, found = timed(lambda: dict(decode(mixing, todo)))
    assert found == dict(enumerate(blocks))
    print(f"\n{mixing.threads} processors, {BLOCKS} blocks of {SIZE:,} bytes, {tokens:,} tokens")
    print(f"payloads {sum(map(len, payloads)):,} bytes")
    for name, seconds in (("encode", encoding), ("decode", decoding)):
        print(f"{name}: {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s, {BLOCKS * SIZE / seconds / 1e6:.2f} MB/s")
    count = _SLOTS["cuda"]
    slots, stepping = np.arange(count), mixing.backend.distributions(count, mixing.window, mixing.order)
    positions = np.full(count, mixing.window)
    seconds, _ = timed(lambda: [stepping.step(slots, slots, slots, positions + n) for n in range(STEPS)])
    print(f"steps of {count} slots alone, copies to the host included: {count * STEPS / seconds:,.0f} tokens/s")
