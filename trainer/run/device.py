"""What a run asks of its device: kernels for attention, a host that stays one step ahead, memory figures."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels from the one to take first: on Hopper cuDNN's is the fastest of those that PyTorch brings."""


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """The block in which attention is compiled and run, with the fastest kernels that a GPU has."""
    return sdpa_kernel(ATTENTION, set_priority=True) if device.type == "cuda" else nullcontext()


def throttle(device: torch.device) -> Callable[[], None]:
    """A function to call after each step: it lets the host run one step ahead of a GPU and no further.

    So the GPU never idles, and the host's clock tells how far training is.
    """
    if device.type != "cuda":
        return lambda: None
    ends: list[torch.cuda.Event] = []

    def wait() -> None:
        ends.append(torch.cuda.Event())
        ends[-1].record()
        if len(ends) == 2:
            ends.pop(0).synchronize()

    return wait


def peak_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory that tensors took at most, so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
