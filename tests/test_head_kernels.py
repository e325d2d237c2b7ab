"""The kernels that split and join heads, run by Triton's interpreter, against plain PyTorch and its gradients."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytest.importorskip("triton")

SCRIPT = """
import torch
from tests.helpers import EVERY_OPTION, random_weights
from trainer.head_kernels import fused_heads
from trainer.model import GPT, Fusion, rms_norm, rotate

BACKEND = "aot_eager"

def plain(joint, gain, cos, sin, heads, kv_heads):
    dim = joint.shape[-1] // (heads + 2 * kv_heads)
    parts = joint.split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)
    return rotate(rms_norm(q), cos, sin) * gain[:, None, None], rotate(rms_norm(k), cos, sin), v

for heads, kv_heads, dim, half, length in ((4, 2, 16, 8, 37), (2, 2, 16, 2, 70), (6, 3, 12, 3, 5)):
    torch.manual_seed(heads)
    joint = torch.randn(3, length, (heads + 2 * kv_heads) * dim)
    gain, angles = torch.randn(heads), torch.randn(length, half)
    results = []
    for function in (fused_heads, plain):
        inputs = [joint.clone().requires_grad_(), gain.clone().requires_grad_()]
        outputs = function(*inputs, angles.cos(), angles.sin(), heads, kv_heads)
        weights = [torch.randn(o.shape, generator=torch.Generator().manual_seed(n)) for n, o in enumerate(outputs)]
        sum((o * w).sum() for o, w in zip(outputs, weights)).backward()
        results.append([*outputs, *(i.grad for i in inputs)])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

weights = random_weights(EVERY_OPTION)
rows = torch.randint(1024, (2, 32), generator=torch.Generator().manual_seed(5))
results = []
for kernels in (True, False):
    model = GPT(EVERY_OPTION, fuse=Fusion(joint=True, kernels=kernels))
    model.load_state_dict(weights)
    compiled = torch.compile(model.loss, backend=BACKEND, fullgraph=True, dynamic=False)
    loss = compiled(rows, rows.roll(-1, 1))
    loss.backward()
    results.append({"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}})
for name, found in results[0].items():
    torch.testing.assert_close(found, results[1][name], rtol=1e-3, atol=1e-5, msg=lambda text: f"{name}: {text}")
print("equal")
"""


def test_heads_and_gradients_are_those_of_plain_pytorch() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "equal", run.stderr
