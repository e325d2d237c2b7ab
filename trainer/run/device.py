"""The device of a run: kernels for attention, a host that stays one step ahead, memory figures."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention by preference: on Hopper, cuDNN's is the fastest that PyTorch brings."""


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which attention is compiled and run, with the fastest kernels of a GPU."""
    return sdpa_kernel(ATTENTION, set_priority=True) if device.type == "cuda" else nullcontext()


def throttle(device: torch.device) -> Callable[[], None]:
    """Return a function to call after each step, which lets the host run one step ahead of a GPU and no further.

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
    """Return the peak bytes of a GPU's memory in tensors so far; None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
