"""How fast a GPU trains the recipes that ship, and where the time goes.

    python3 -m pytest -s -m benchmark tests/benchmarks/test_train_speed.py

Or one recipe with overrides: python3 -c "from tests.benchmarks.test_train_speed import measure;
measure('record', 'train.micro_batches=4')"
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from codec.model.tokenizer import BOS
from trainer.data.batches import Batches
from trainer.data.loader import Loader, open_loader
from trainer.data.shards import write_shard
from trainer.distributed import World
from trainer.model.flops import flops_per_token, utilisation
from trainer.optim.schedule import phases
from trainer.recipe import Recipe, load_recipe
from trainer.run.device import attention_kernels, peak_memory
from trainer.run.losses import losses_of
from trainer.run.state import State
from trainer.run.step import descend, take

DOCUMENT = 840
"""Tokens of a document on average, about as in the challenge's text under its vocabulary of 8,192."""

GROUPS = {
    "the compiler's kernels": ("triton_",),
    "attention": ("sdpa", "fmha", "cudnn", "flash", "flex"),
    "matrix products": ("nvjet", "gemm", "cutlass", "splitK", "scaled_mm"),
    "our own kernels": ("_split", "_join", "_product", "_slopes", "_without_value"),
    "everything else": ("",),
}
"""Kinds of kernels by parts of their names; the first that fits counts."""

WARM, TIMED = 3, 10
"""Steps before the clock starts, and on it."""


def measure(name: str, *overrides: str, kernels: int = 25) -> float:
    """Print speed, memory and the `kernels` kernels that take most time; return tokens a second."""
    recipe, world = load_recipe(name, overrides), World(device=torch.device("cuda", 0))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, attention_kernels(world.device):
        path = Path(folder) / "x_train_000000.bin"
        generator, count = np.random.default_rng(0), 4 * recipe.train.batch_tokens
        tokens = generator.integers(4, recipe.model.vocab_size, count)
        tokens[generator.random(count) < 1 / DOCUMENT] = BOS
        write_shard(path, tokens)
        batches = Batches([path], recipe.model.window, recipe.model.vocab_size)
        with open_loader([batches], world.device) as loader:
            return timed(" ".join((name, *overrides)), recipe, world, loader, kernels)


def timed(title: str, recipe: Recipe, world: World, loader: Loader, kernels: int) -> float:
    """See `measure`."""
    begin = time.perf_counter()
    state = State.start(recipe, world)
    phase = phases(recipe)[-1]
    loss = losses_of(state.model, recipe, world).of(state.model, phase)

    def step() -> None:
        descend(state, loss, take(loader, state.tokens, phase, recipe, world), recipe, 1e-3)
        state.step, state.tokens = state.step + 1, state.tokens + phase.batch_tokens
        state.update_average(recipe.train)

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    seconds(WARM)
    compiling = time.perf_counter() - begin
    whole = seconds(TIMED)
    speed = phase.batch_tokens / whole
    flops = speed * flops_per_token(recipe.model, phase.window)
    mfu = utilisation(flops, world.device) or 0.0
    print(f"\n{title}: {torch.cuda.get_device_name(world.device)}, torch {torch.__version__}")
    print(f"{speed / 1e6:.3f} M tokens/s  {1000 * whole:.1f} ms/step  {flops / 1e12:.0f} TFLOP/s  MFU {mfu:.1%}")
    print(f"peak {(peak_memory(world.device) or 0) / 2**30:.1f} GiB  {compiling:.0f} s to compile and warm")
    parts = take(loader, 0, phase, recipe, world)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for inputs, targets in parts:
        loss(inputs, targets).backward()
    launched = time.perf_counter() - begin
    torch.cuda.synchronize()
    passes = time.perf_counter() - begin
    print(f"{len(parts)} forward and backward passes {1000 * passes:.1f} ms, launched in {1000 * launched:.1f} ms")
    print(f"the rest of the step {1000 * (whole - passes):.1f} ms")
    state.model.zero_grad(set_to_none=True)
    if kernels:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            seconds(1)
        slowest = sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
        for kernel in slowest[:kernels]:
            print(f"{kernel.self_device_time_total / 1000:9.2f} ms {kernel.count:6}x  {kernel.key[:110]}")
        rest = slowest
        for what, names in GROUPS.items():
            group = [kernel for kernel in rest if any(name in kernel.key for name in names)]
            rest = [kernel for kernel in rest if kernel not in group]
            print(f"{sum(kernel.self_device_time_total for kernel in group) / 1000:9.2f} ms {what}")
    return speed


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["baseline", "record model.loop_count=1", "record"])
def test_train_speed(case: str) -> None:
    name, *overrides = case.split()
    assert measure(name, *overrides) > 0
