"""How much arithmetic training takes, and what share of a device's best it reaches (MFU)."""

import torch

from codec.config import ModelConfig
from codec.parameters import parameters

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by what a device's name contains: the vendor's data sheets."""


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of forward and backward pass for one token of a row of the full window.

    A multiply-add is two. Forward: 2 for every weight of a matrix product, as often as its block runs, and for the
    products of queries with keys and of chances with values 2 for each of model_dim channels and (window / 2) positions
    on average. Backward: twice as many. Norms, activations, look-ups and the optimizer are left out, as is usual.
    """
    weights = config.vocab_size * config.model_dim
    for name, parameter in parameters(config).items():
        if parameter.role == "matrix":
            runs = config.schedule.count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
            weights += runs * parameter.shape[0] * parameter.shape[1]
    attention = len(config.schedule) * 2 * config.model_dim * config.window / 2
    return 6 * (weights + attention)


def utilisation(config: ModelConfig, tokens_per_second: float, device: torch.device, count: int) -> float | None:
    """MFU of a run on `count` such devices; None where the best of the device is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for known, flops in PEAKS.items() if known in name), None)
    return peak and tokens_per_second * flops_per_token(config) / (count * peak)
