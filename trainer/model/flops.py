"""How much arithmetic training takes, and what share of a device's best it reaches (MFU)."""

import torch

from codec.model.config import ModelConfig
from codec.model.parameters import parameters

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by what a device's name contains: the vendor's data sheets."""


def flops_per_token(config: ModelConfig, window: int = 0, loops: bool = True) -> float:
    """Floating-point operations of forward and backward pass for one token of a row of `window` tokens.

    A multiply-add is two. Forward: 2 for every weight of a matrix product, as often as its block runs, and for the
    products of queries with keys and of chances with values 2 for each of model_dim channels and (window / 2) positions
    on average. Backward: twice as many. Norms, activations, look-ups and the optimizer are left out, as is usual.

    Args:
        window: 0 for the config's.
        loops: whether the config's loops run.
    """
    schedule = config.schedule if loops else tuple(range(config.num_layers))
    weights = config.vocab_size * (config.embedding_dim or config.model_dim)
    for name, parameter in parameters(config).items():
        if parameter.role == "matrix":
            runs = schedule.count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
            runs += name == "embed_proj.weight"  # transposed, before the last layer
            weights += runs * parameter.shape[0] * parameter.shape[1]
    if config.random_rank:  # the fixed maps, which are no parameters
        weights += len(schedule) * config.model_dim * (config.up_dim + config.hidden_dim)
    attention = len(schedule) * 2 * config.model_dim * (window or config.window) / 2
    return 6 * (weights + attention)


def utilisation(flops_per_second: float, device: torch.device) -> float | None:
    """MFU of a device; None where the best it can do is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((flops for known, flops in PEAKS.items() if known in name), None)
    return peak and flops_per_second / peak
