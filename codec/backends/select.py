"""Choose who computes a model: compiled loops on a processor, Triton kernels on a GPU, or the reference on torch.

All give the same integers. A compiled backend is compared with the reference (`codec.backends.agree`) before it is
used, once for each model and machine: the verdict is kept under a key of all that could change it. Where a verdict is
kept, a processor codes without importing torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from codec.cache import kept, source_hash
from codec.console import notes
from codec.errors import UnsupportedError
from codec.exact.backend import Backend
from codec.exact.families.weights import AnyWeights, TransformerWeights
from codec.exact.recall import Recall

_GPU_VARIABLES = ("TRITON_", "CUBLAS_", "NVIDIA_TF32")  # beginnings of names of variables that change what a GPU does


def make_backend(weights: AnyWeights, device: str = "cpu", recall: Recall | None = None) -> Backend:
    """Return the fastest backend that agrees with the reference; a note on stderr says if it is the slow one, and why.

    Args:
        weights: the model's.
        device: cpu, or cuda for torch's current GPU.
        recall: with which slots remember the tokens of their document.
    """
    try:
        fast = _fast_backend(weights, device, recall)
    except UnsupportedError as error:
        reason = str(error)
    else:
        if _agrees(fast, weights, device, recall):
            return fast
        reason = "this machine's processor or compiler does not compute it as torch does"
    notes.print(
        f"underpar: the model runs without its compiled kernels, slowly: {reason}", highlight=False, soft_wrap=True
    )
    return _reference(weights, device, recall)


def _fast_backend(weights: AnyWeights, device: str, recall: Recall | None) -> Backend:
    """Return compiled kernels for a device. Raises UnsupportedError where there are none, or not for this model."""
    # These compile or load kernels, which no other device needs.
    if device == "cpu":
        if isinstance(weights, TransformerWeights):
            from codec.backends.cpu.transformer import CpuTransformer

            return CpuTransformer(weights, recall)
        from codec.backends.cpu.backend import CpuModel

        return CpuModel(weights, recall)
    if device == "cuda" and find_spec("triton"):
        if isinstance(weights, TransformerWeights):
            from codec.backends.cuda.families.network import CudaTransformer
            from codec.exact.families.transformer import ExactTransformer

            return CudaTransformer(ExactTransformer(weights, device), recall)
        from codec.backends.cuda.backend import CudaBackend
        from codec.exact.model import ExactModel

        return CudaBackend(ExactModel(weights, device), recall)
    raise UnsupportedError(f"there are none for {device}")


def _reference(weights: AnyWeights, device: str, recall: Recall | None) -> Backend:
    # torch, which takes longer to import than a short text to code
    from codec.exact.families.transformer import exact_model
    from codec.exact.reference import TorchBackend

    return TorchBackend(exact_model(weights, device), recall)


def _agrees(fast: Backend, weights: AnyWeights, device: str, recall: Recall | None) -> bool:
    """Return the verdict of the self-test, kept from an earlier process where nothing that matters has changed."""

    def compare() -> bytes:
        from codec.backends.agree import TRIALS, agree

        reference = _reference(weights, device, recall)
        return b"agrees" if agree(fast, reference, weights.config, TRIALS[device]) else b"differs"

    if not weights.sha256:
        return compare() == b"agrees"
    facts = json.dumps([source_hash(), weights.sha256, recall and recall.to_json(), machine(device)], sort_keys=True)
    return kept(f"verdicts/{hashlib.sha256(facts.encode()).hexdigest()[:32]}", compare) == b"agrees"


def machine(device: str) -> Mapping[str, Any]:
    """Return what decides how this machine computes on a device, beside the sources (`codec.cache.source_hash`).

    The processor's name and features are those that numba compiles for, which its variables may change.
    """
    from numba.core.registry import cpu_target

    facts: dict[str, Any] = {
        "device": device,
        "processor": cpu_target.target_context.codegen().magic_tuple(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "numba", "llvmlite", "triton")},
    }
    if device == "cuda":
        import torch

        facts["gpu"] = repr(torch.cuda.get_device_properties(torch.cuda.current_device()))
        facts["driver"] = _driver()
        facts["cuda"] = torch.version.cuda
        facts["variables"] = {name: os.environ[name] for name in os.environ if name.startswith(_GPU_VARIABLES)}
    return facts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    """Return the version of the GPU's driver, as the kernel module says it; empty where there is no such file."""
    from pathlib import Path

    path = Path("/proc/driver/nvidia/version")
    return path.read_text() if path.is_file() else ""
