"""Choose the backend of a model: compiled loops on a processor, Triton kernels on a GPU, or the reference on torch.

All backends give the same integers. A compiled backend is compared with the reference (`codec.backends.agree`) before
the backend is used, once for each model and machine. The verdict is kept in a cache, whose key has every fact that
could change the verdict. With a verdict in the cache, a processor codes without importing torch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from codec.cache import kept, source_hash, version
from codec.compiled import processor
from codec.console import notes
from codec.errors import UnsupportedError
from codec.exact.backend import Backend
from codec.exact.families.weights import AnyWeights, TransformerWeights
from codec.exact.recall import Recall

_GPU_VARIABLES = ("TRITON_", "CUBLAS_", "NVIDIA_TF32")  # prefixes of environment variables that change a GPU's results


def make_backend(weights: AnyWeights, device: str = "cpu", recall: Recall | None = None) -> Backend:
    """Return the fastest backend that agrees with the reference.

    If the only such backend is the reference, a note on stderr says that the model runs slowly, and why.

    Args:
        weights: the model's weights.
        device: cpu, or cuda for torch's current GPU.
        recall: the tables of the match model, or None for a pack without a match model.
    """
    try:
        fast = _fast_backend(weights, device, recall)
    except UnsupportedError as error:
        reason = str(error)
    else:
        if _agrees(fast, weights, device, recall):
            return fast
        reason = "this machine's processor or compiler does not compute it as torch does"
    notes.print(f"underpar: the model runs without its compiled kernels, slowly: {reason}")
    return _reference(weights, device, recall)


def _fast_backend(weights: AnyWeights, device: str, recall: Recall | None) -> Backend:
    """Return the compiled backend of a device.

    Imports are inside because they compile kernels, which no other device needs.

    Raises:
        UnsupportedError: the device has no compiled kernels, or the kernels do not compute this model.
    """
    if device == "cpu":
        if isinstance(weights, TransformerWeights):
            from codec.backends.cpu.transformer import CpuTransformer

            return CpuTransformer(weights, recall)
        from codec.backends.cpu.backend import CpuBackend

        return CpuBackend(weights, recall)
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
    # torch takes longer to import than a short text to code
    from codec.exact.families.transformer import exact_model
    from codec.exact.reference import TorchBackend

    return TorchBackend(exact_model(weights, device), recall)


def _agrees(fast: Backend, weights: AnyWeights, device: str, recall: Recall | None) -> bool:
    """Return the verdict of the self-test, from the cache if an earlier process has tested under the same key."""

    def compare() -> bytes:
        from codec.backends.agree import TRIALS, agree

        reference = _reference(weights, device, recall)
        return b"agrees" if agree(fast, reference, weights.config, TRIALS[device]) else b"differs"

    if not weights.sha256:
        return compare() == b"agrees"
    facts = json.dumps([source_hash(), weights.sha256, recall and recall.to_json(), machine(device)], sort_keys=True)
    return kept(f"verdicts/{hashlib.sha256(facts.encode()).hexdigest()[:32]}", compare) == b"agrees"


def machine(device: str) -> Mapping[str, Any]:
    """Return the facts, beside the sources (`codec.cache.source_hash`), that decide how a device computes.

    The processor's name and features are those that numba compiles for; numba's environment variables can change both.
    """
    facts: dict[str, Any] = {
        "device": device,
        "processor": processor(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba", "llvmlite", "triton")},
    }
    if device == "cuda":
        import torch

        facts["gpu"] = repr(torch.cuda.get_device_properties(torch.cuda.current_device()))
        facts["driver"] = _driver()
        facts["cuda"] = torch.version.cuda
        facts["variables"] = {name: os.environ[name] for name in os.environ if name.startswith(_GPU_VARIABLES)}
    return facts


def _driver() -> str:
    """Return the version of the GPU's driver from the kernel module's file; empty if the file does not exist."""
    from pathlib import Path

    path = Path("/proc/driver/nvidia/version")
    return path.read_text() if path.is_file() else ""
