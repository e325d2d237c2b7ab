"""Training's own kernels, run by Triton's interpreter, against plain PyTorch; and that they compile for Hopper."""

import os
import subprocess
import sys

import pytest
import torch

from codec.model.config import ModelConfig
from tests.support.helpers import ROOT, random_weights
from trainer.kernels.fusion import Fusion
from trainer.model.gpt import GPT
from trainer.run.device import attention_kernels

pytest.importorskip("triton")

SAME = """
import torch
import torch.nn.functional as F
from dataclasses import replace
from tests.support.helpers import EVERY_OPTION, random_weights
from trainer.kernels.heads import fused_heads
from trainer.kernels.mlp import fused_mlp
from trainer.kernels import loss
from trainer.model import cross_entropy
from trainer.kernels.fusion import Fusion
from trainer.model.layers import rms_norm, rotate
from trainer.kernels.xsa import fused_without_own_value
from trainer.model.gpt import GPT, without_own_value

def plain(joint, gain, cos, sin, heads, kv_heads):
    dim = joint.shape[-1] // (heads + 2 * kv_heads)
    parts = joint.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)
    return rotate(rms_norm(q), cos, sin) * gain[:, None, None], rotate(rms_norm(k), cos, sin), v

def check(functions, inputs, *rest):
    results = []
    for function in functions:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = function(*leaves, *rest)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [torch.randn(o.shape, generator=torch.Generator().manual_seed(n)) for n, o in enumerate(outputs)]
        sum((o * w).sum() for o, w in zip(outputs, weights)).backward()
        results.append([*outputs, *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

torch.manual_seed(0)
for heads, kv_heads, dim, half, length in ((4, 2, 16, 8, 37), (2, 2, 16, 2, 70), (6, 3, 12, 3, 5)):
    angles = torch.randn(length, half)
    inputs = torch.randn(3, length, (heads + 2 * kv_heads) * dim), torch.randn(heads)
    check((fused_heads, plain), inputs, angles.cos(), angles.sin(), heads, kv_heads)

for slope in (0.0, 0.5):
    inputs = torch.randn(2, 70, 64), torch.randn(320, 64) / 8, torch.randn(64, 320) / 18
    check((fused_mlp, lambda x, up, down, slope: F.leaky_relu(x @ up.T, slope).square() @ down.T), inputs, slope)

def plain_xsa(y, v, gates=None):
    y = without_own_value(y, v)
    return y if gates is None else y * gates.transpose(1, 2)[..., None]

for heads, kv_heads, dim, length in ((4, 2, 16, 37), (3, 3, 12, 5)):
    inputs = torch.randn(2, heads, length, dim), torch.randn(2, kv_heads, length, dim), torch.rand(2, length, heads)
    inputs[1][0, 0, 3] = 0
    check((fused_without_own_value, plain_xsa), inputs)
    check((lambda y, v: fused_without_own_value(y, v, None), plain_xsa), inputs[:2])

for vocab, cap, size in ((29, 30.0, 10.0), (2000, 30.0, 1000.0), (64, 1000.0, 1000.0)):
    logits, targets = size * torch.randn(40, vocab), torch.randint(vocab, (40,))
    found, expected = (m.losses_and_slopes(logits, targets, cap, 7) for m in (loss, cross_entropy))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

config = replace(EVERY_OPTION, model_dim=64)
weights = random_weights(config)
rows = torch.randint(1024, (2, 32), generator=torch.Generator().manual_seed(5))
results = []
for own in (True, False):
    model = GPT(config, fuse=Fusion(joint=True, heads=own, loss=own, mlp=own, xsa=own))
    model.load_state_dict(weights)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)
    loss = compiled(rows, rows.roll(-1, 1))
    loss.backward()
    results.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
for name, found in results[0].items():
    torch.testing.assert_close(found, results[1][name], rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")
print("done")
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer.kernels import heads, loss, mlp, xsa

def compile_for_hopper(kernel, types, constants, warps):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items() if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 3})

numbers = {"tokens": "i32", "length": "i32", "eps": "fp32"}
shape = {"H": 8, "KV": 4, "D": 64, "BLOCK": 64, "HALF": 8, "ROWS": heads.ROWS}
for kernel in (heads._split, heads._join):
    tensors = {name: "*bf16" for name in kernel.arg_names if name not in numbers and name not in shape}
    tensors |= {name: "*fp32" for name in ("gain", "cos", "sin", "parts") if name in tensors}
    assert "ld.global.v4" in compile_for_hopper(kernel, tensors | numbers, shape, 4).asm["ptx"]

shape = {"H": 8, "KV": 4, "D": 64, "BLOCK": 64, "ROWS": xsa.ROWS}
for kernel in (xsa._without_value, xsa._without_value_back):
    tensors = {name: "*bf16" for name in kernel.arg_names if name not in numbers and name not in shape}
    types = tensors | {"tokens": "i32", "eps": "fp32"}
    assert "ld.global.v4" in compile_for_hopper(kernel, types, shape, 4).asm["ptx"]

types = {"logits": "*bf16", "targets": "*i64", "losses": "*fp32", "slopes": "*bf16", "cap": "fp32", "count": "fp32"}
found = compile_for_hopper(loss._slopes, types, {"V": 8192, "BLOCK": 8192}, 8192 // loss.NUMBERS)
assert "ld.global.v4" in found.asm["ptx"]

for backward in (False, True):
    for chosen in mlp.CONFIGURATIONS:
        rows, columns, depth = (chosen.kwargs[name] for name in ("ROWS", "COLUMNS", "DEPTH"))
        right = (depth, columns) if backward else (columns, depth)
        blocks = {"left": (rows, depth), "right": right, "hidden": (rows, columns), "out": (rows, columns)}
        types = {name: f"tensordesc<bf16[{a},{b}]>" for name, (a, b) in blocks.items()}
        types |= {"tokens": "i32", "units": "i32"}
        constants = {"width": 512, "SLOPE": 0.5, "BACKWARD": backward, **chosen.kwargs}
        found = compile_for_hopper(mlp._product, types, constants, chosen.num_warps)
        assert "wgmma.mma_async" in found.asm["ptx"] and "cp.async.bulk.tensor" in found.asm["ptx"]
        assert found.metadata.shared < 232448  # bytes that a multiprocessor has
print("done")
"""


@pytest.mark.parametrize(
    ("script", "interpret"),
    [pytest.param(SAME, "1", marks=pytest.mark.long), (COMPILED, "0")],
    ids=["same", "compiled"],
)
def test_kernels(script: str, interpret: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "done", run.stderr


WIDE = ModelConfig(
    vocab_size=512,
    window=256,
    num_layers=3,
    activation="leaky_relu2",
    mlp_mult=4,
    rope_dims=16,
    skips="gated",
    xsa_layers=2,
    attention_gate=True,
)
"""Widths of the challenge's models."""


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fuse", "limit"),
    [
        (Fusion(joint=True), 0.08),
        (Fusion(joint=True, heads=True), 0.08),
        (Fusion(joint=True, loss=True), 0.08),
        (Fusion(joint=True, mlp=True), 0.08),
        (Fusion(joint=True, xsa=True), 0.08),
        (Fusion(joint=True, fp8=True), 0.5),
    ],
)
def test_a_gpu_computes_the_gradients_of_the_plain_float32_model(fuse: Fusion, limit: float) -> None:
    """Up to the rounding of bfloat16 and of 8 bits: the error's share of each gradient."""
    device, rows = torch.device("cuda"), torch.randint(512, (8, 256), generator=torch.Generator().manual_seed(1))
    models = [GPT(WIDE).to(device), GPT(WIDE, dtype=torch.bfloat16, fuse=fuse).to(device)]
    losses = []
    with attention_kernels(device):
        for model in models:
            model.load_state_dict(random_weights(WIDE))
            loss = torch.compile(model.loss, fullgraph=True, dynamic=False) if model.fuse.joint else model.loss
            losses.append(loss(rows.to(device), rows.roll(-1, 1).to(device)))
            losses[-1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=limit)
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert (p.grad - q.grad).norm() < limit * p.grad.norm(), name
