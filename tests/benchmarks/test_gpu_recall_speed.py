"""How fast a GPU scores and decodes with recall and without, near the beginning of documents and far behind it.

python3 -m pytest -s -m benchmark tests/benchmarks/test_gpu_recall_speed.py
"""

import numpy as np
import pytest
import torch

from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.recall import Memory
from codec.backends.cuda.slots import STEPS, CudaSlots
from tests.benchmarks.test_gpu_speed import DATA, SLOTS, kernels, seconds
from tests.codec.backends.cuda.test_backend import with_columns
from tests.codec.exact.test_recall import TABLES
from trainer.recipe import load_recipe

ROWS = ((256, 256, 128), (64, 1024, 512), (32, 2048, 9000))
"""Documents, tokens of their windows, of which the second half is scored, and the place where that begins."""

POSITIONS = ((512, 512), (1024, 1024), (1500, 9000))
"""Positions of slots in their windows and in their documents."""


def fill(memory: Memory | None, words: torch.Tensor, places: int) -> None:
    """Documents that have `places` tokens, the first of `words` [documents, tokens]."""
    if memory:
        memory.tokens.copy_(words[: len(memory.tokens), : memory.tokens.shape[1]])
        memory.places.fill_(places)


def score(model: CudaBackend, words: torch.Tensor) -> None:
    """Print the speed of windows whose tokens are known."""
    for count, length, places in ROWS:
        rows, memory = words[:count, :length].long().cpu().numpy(), model.memory(count, words.shape[1])
        fill(memory, words, places)

        def run(rows: np.ndarray = rows, half: int = length // 2, memory: Memory | None = memory) -> object:
            return model.score(list(rows), list(rows[:, half:]), memory)

        taken = seconds(run)
        print(f"score the last half of {count} x {length} from {places} on: {count * length / 2 / taken:,.0f} tokens/s")
    kernels(run, 12)


def decode(model: CudaBackend, words: torch.Tensor) -> None:
    """Print the speed of steps over keys and values of zero."""
    torch.cuda.empty_cache()
    count = min(SLOTS, torch.cuda.mem_get_info()[0] * 9 // 10 // model.slot_bytes(model.config.window))
    data = np.random.default_rng(0).integers(0, 256, DATA * count).astype(np.uint8)
    slots, begins = CudaSlots(model, count, data, model.config.window), DATA * np.arange(count)

    def start(position: int, places: int) -> None:
        slots.load(range(count), begins, begins + DATA)
        slots._state.inputs[2] = position
        slots._positions[:] = position
        slots._reach()
        slots._state.counter.zero_()  # a step writes to the history where this says
        fill(slots._memory, words, places)

    for at in POSITIONS:
        taken = seconds(lambda: slots.launch()(), lambda at=at: start(*at)) / STEPS
        print(f"{count} slots at {at[1]}: {count / taken:,.0f} tokens/s, {1e3 * taken:.2f} ms a step")
    start(*POSITIONS[-1])
    kernels(slots._step, 12)


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recall", [None, TABLES], ids=["without", "with"])
def test_recall_speed(recall):
    config = load_recipe("record").model
    words = np.random.default_rng(0).zipf(1.2, (SLOTS, 12_000)) % config.vocab_size
    model = CudaBackend(with_columns(config, "cuda"), recall)
    print(f"\n{torch.cuda.get_device_name()}, {'with' if recall else 'without'} recall")
    score(model, torch.from_numpy(words).to("cuda", torch.int32))
    decode(model, torch.from_numpy(words).to("cuda", torch.int32))
