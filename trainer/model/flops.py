"""The arithmetic of training: operations a token, and the share of a device's peak that training reaches (MFU)."""

import torch

from codec.model.config import ModelConfig
from codec.model.parameters import parameters

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by a part of the device's name: the vendor's data sheets."""


def flops_per_token(config: ModelConfig, window: int = 0, loops: bool = True) -> float:
    """Return the floating-point operations of forward and backward pass for one token of a row of `window` tokens.

    A multiply-add is two operations. Forward: 2 for every weight of a matrix product, as often as its block runs; and,
    for the products of queries with keys and of probabilities with values, 2 for each of model_dim channels and (window
    / 2) positions on average. Backward: twice as many. Norms, activations, look-ups and the optimizer are left out, as
    is usual.

    Args:
        config: the model.
        window: tokens of a row; 0: the config's window.
        loops: whether the config's loops run.
    """
    schedule = config.schedule if loops else tuple(range(config.num_layers))
    weights = config.vocab_size * (config.embedding_dim or config.model_dim)
    for name, parameter in parameters(config).items():
        if parameter.role == "matrix":
            runs = schedule.count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
            runs += name == "embed_proj.weight"  # used twice: transposed, before the output head
            weights += runs * parameter.shape[0] * parameter.shape[1]
    if config.random_rank:  # fixed maps, which are no parameters
        weights += len(schedule) * config.model_dim * (config.up_dim + config.hidden_dim)
    attention = len(schedule) * 2 * config.model_dim * (window or config.window) / 2
    return 6 * (weights + attention)


def utilisation(flops_per_second: float, device: torch.device) -> float | None:
    """Return the MFU of a device; None if its peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for known, flops in PEAKS.items() if known in name), None)
    return peak and flops_per_second / peak
