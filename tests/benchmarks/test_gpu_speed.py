"""How fast a GPU scores and decodes with a model of the record's shape, and how far that is from what the card allows.

python3 -m pytest -s -m benchmark tests/benchmarks/test_gpu_speed.py

Two floors stand beside each time. By bytes: what must be read and written at least, at the speed of a copy on the same
card. By operations: the products of 8-bit limbs on tensor cores, at the speed of a large square product of torch. The
weights are random, every matrix has integers above 8 bits and so two limbs; the pack that ships has them in few blocks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.kernels.matmul import TILE, Limbs
from codec.backends.cuda.slots import STEPS, CudaSlots
from tests.codec.backends.cuda.test_backend import with_columns
from trainer.recipe import load_recipe

ROWS = ((256, 256), (64, 1024), (32, 2048))
POSITIONS = (64, 512, 1024, 1500)
SLOTS = 2048
DATA = 1024
"""Bytes that each slot has: some hundred steps of them."""

ATTENTION = ("_rows_kernel", "_step_kernel")

LIMB_PRODUCTS = 4 + 6
"""Of a query and a key: two limbs each; of a weight and a value: three and two."""


@dataclass(frozen=True)
class Card:
    """What a GPU does in a second."""

    copied: float  # bytes, those read and those written
    multiplied: float  # products of signed 8-bit integers, each with its sum

    @classmethod
    def measure(cls, size: int = 1 << 30, side: int = 8192) -> "Card":
        """By a copy of `size` bytes, and a product of square matrices."""
        source = torch.zeros(size, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        a, b = torch.randint(-128, 128, (2, side, side), dtype=torch.int8, device="cuda")
        copied = 2 * size / seconds(lambda: target.copy_(source))
        return cls(copied, side**3 / seconds(lambda: torch._int_mm(a, b.T)))


@dataclass(frozen=True)
class Work:
    """The least that a run takes."""

    bytes: int
    products: int  # of limbs

    def compare(self, card: Card, taken: float) -> str:
        """Both floors, and the time taken as a multiple of each."""
        floors = {"bytes": self.bytes / card.copied, "operations": self.products / card.multiplied}
        return ", ".join(f"{taken / s:.1f} x the floor by {name} ({1e3 * s:.2f} ms)" for name, s in floors.items())


def matrices(model: CudaBackend) -> list[Limbs]:
    """Those that a token goes through: of each block execution, and the head's."""
    layers = [model._layers[i] for i in model.config.schedule]
    return [m for y in layers for m in (y.query, y.key, y.value, y.attention_out, y.up, y.down)] + [model.head_matrix]


def seconds_of(matrix: Limbs) -> int:
    """Second limbs that are multiplied: those of blocks that hold some."""
    return int(matrix.counts.sum()) * TILE * matrix.at_once if len(matrix.integers) == 2 else 0


def work(model: CudaBackend, tokens: int, keys: int, keys_moved: int) -> Work:
    """Of `tokens` tokens that see `keys` keys in all, and read or write `keys_moved` of them.

    Weights are read once; the residual stream is read and written once in each block.
    """
    c, parts = model.config, matrices(model)
    blocks = len(c.schedule)
    weights = {m.integers.data_ptr(): m.integers.nbytes for m in parts}
    stream, key = 2 * 8 * c.model_dim, 2 * 2 * c.kv_dim  # float64; a key and a value of two limbs
    products = tokens * sum(m.operand_limbs * (m.outputs * m.inputs + seconds_of(m)) for m in parts)
    products += blocks * keys * c.num_heads * c.head_dim * LIMB_PRODUCTS
    return Work(sum(weights.values()) + blocks * (tokens * stream + keys_moved * key), products)


def seconds(run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The least of three runs after one that compiles; `before` is off the clock."""
    taken = []
    for _ in range(4):
        before()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])


def kernels(run: Callable[[], object], shown: int = 0) -> float:
    """The share of attention in the time of all kernels; prints the `shown` that take most."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    taken = sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    for kernel in taken[:shown]:
        print(f"{kernel.self_device_time_total / 1000:9.2f} ms {kernel.count:6}x  {kernel.key[:90]}")
    attention = [kernel for kernel in taken if any(name in kernel.key for name in ATTENTION)]
    whole = sum(kernel.self_device_time_total for kernel in taken)
    return sum(kernel.self_device_time_total for kernel in attention) / whole


def score(model: CudaBackend, card: Card) -> None:
    """Print the speed of windows whose tokens are known."""
    generator = np.random.default_rng(0)
    for count, length in ROWS:
        rows = list(generator.integers(2, model.config.vocab_size, (count, length)))

        def run(rows: list = rows) -> object:
            return model.score(rows, rows)

        tokens, taken = count * length, seconds(run)
        least = work(model, tokens, tokens * (length + 1) // 2, 2 * tokens)
        print(f"score {count} x {length}: {tokens / taken:,.0f} tokens/s, {1e3 * taken:.1f} ms")
        print(f"    attention {kernels(run):.0%}, {least.compare(card, taken)}")
    kernels(run, 12)


def decode(model: CudaBackend, card: Card) -> None:
    """Print the speed of steps, over keys and values of any value."""
    torch.cuda.empty_cache()
    count = min(SLOTS, torch.cuda.mem_get_info()[0] * 9 // 10 // model.slot_bytes(model.config.window))
    data = np.random.default_rng(0).integers(0, 256, DATA * count).astype(np.uint8)
    slots, begins = CudaSlots(model, count, data, model.config.window), DATA * np.arange(count)
    for part in (*slots._cache.keys, *slots._cache.values):
        part[0].random_(-128, 128)
        part[1].random_(-8, 8)  # about as long as keys are: sums of products stay within 32 bits

    def start(position: int) -> None:
        slots.load(range(count), begins, begins + DATA)
        slots._state.inputs[2] = position
        slots._positions[:] = position
        slots._reach()
        slots._state.counter.zero_()  # a step writes to the history where this says

    for position in POSITIONS:
        taken = seconds(lambda: slots.launch()(), lambda position=position: start(position)) / STEPS
        keys = count * (position + STEPS // 2)
        start(position)
        share = kernels(slots._step)
        print(f"{count} slots at position {position}: {count / taken:,.0f} tokens/s, {1e3 * taken:.2f} ms a step")
        print(f"    attention {share:.0%}, {work(model, count, keys, keys).compare(card, taken)}")
    start(POSITIONS[-1])
    kernels(slots._step, 12)


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_gpu_speed():
    card = Card.measure()
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}: a copy moves {card.copied / 1e9:,.0f} GB/s,")
    print(f"int8 products of {card.multiplied * 2 / 1e12:,.0f} Top/s")
    model = CudaBackend(with_columns(load_recipe("record").model, "cuda"))
    score(model, card)
    decode(model, card)
