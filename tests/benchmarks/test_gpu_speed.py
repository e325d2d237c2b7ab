"""How fast a GPU scores and decodes with a model of the record's shape, and where the time goes.

python3 -m pytest -s -m benchmark tests/benchmarks/test_gpu_speed.py
"""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from codec.cuda_lanes import STEPS, CudaLanes
from codec.exact_cuda import CudaModel
from tests.test_exact_cuda import RECORD, with_columns

ROWS = ((64, 1024), (32, 2048), (256, 256))
POSITIONS = (64, 512, 1500)
LANES = 2048


def seconds(run: Callable[[], object]) -> float:
    """Of the second of two runs."""
    for _ in range(2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def kernels(run: Callable[[], object]) -> None:
    """Print the ten kernels that take most time."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    for kernel in sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)[:10]:
        print(f"{kernel.self_device_time_total / 1000:9.2f} ms {kernel.count:6}x  {kernel.key[:90]}")


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_gpu_speed():
    model, generator = CudaModel(with_columns(RECORD, "cuda")), np.random.default_rng(0)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for count, length in ROWS:
        rows = list(generator.integers(2, RECORD.vocab_size, (count, length)))
        speed = count * length / seconds(lambda rows=rows: model.score(rows, rows))
        print(f"score {count} x {length}: {speed:,.0f} tokens/s")
    kernels(lambda: model.score(rows, rows))
    data = generator.integers(0, 256, 2048 * LANES).astype(np.uint8)
    lanes, begins = CudaLanes(model, LANES, data, RECORD.window), 2048 * np.arange(LANES)

    def steps(position: int) -> Callable[[], object]:
        """A run of all lanes from a position, over keys and values of zero; loading the lanes is part of it."""

        def run() -> object:
            lanes.load(range(LANES), begins, begins + 2048)
            lanes.refill(range(LANES), np.full((LANES, 1), 2))
            lanes._lanes[2] = position
            return lanes.run()

        return run

    for position in POSITIONS:
        speed = STEPS * LANES / seconds(steps(position))
        print(f"{LANES} lanes at position {position}: {speed:,.0f} tokens/s")
    lanes._counter.zero_()  # a run has left it behind the last row of the history
    kernels(lanes._step)
    assert speed > 0
