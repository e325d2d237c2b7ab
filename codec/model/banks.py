"""State dicts in the layout of the challenge's later scripts: the same names, but matrices in banks and scalars.

A bank is a 3-D parameter: the matrices of one or two kinds, for every layer, the second kind behind the first. All
other tensors have the names of `codec.model.parameters`.
"""

import torch

from codec.errors import FormatError

BANKS = {
    "qo_bank": ("attn.c_q.weight", "attn.proj.weight"),
    "kv_bank": ("attn.c_k.weight", "attn.c_v.weight"),
    "mlp_up_bank": ("mlp.fc.weight",),
    "mlp_down_bank": ("mlp.proj.weight",),
}
"""The kinds of matrices in each bank, in their order."""

SCALARS = ("bigram.scale",)
"""Tensors with one entry in this project and no dimensions in the challenge's scripts."""


def to_challenge(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the matrices of all layers into banks.

    Raises:
        FormatError: a layer lacks a matrix that belongs into a bank.
    """
    layers = sum(name.endswith(".attn.q_gain") for name in state)
    found = {name: tensor.reshape(()) if name in SCALARS else tensor for name, tensor in state.items()}
    for bank, kinds in BANKS.items():
        names = [f"blocks.{layer}.{kind}" for kind in kinds for layer in range(layers)]
        if missing := [name for name in names if name not in state] or [kinds[0]] * (not layers):
            raise FormatError(f"{bank}: tensor {missing[0]} is missing; pass a model of the challenge's family")
        found[bank] = torch.stack([found.pop(name) for name in names])
    return found


def from_challenge(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the matrices out of banks; a matrix that is in no bank stays as found.

    Raises:
        FormatError: a bank is not 3-D, or does not hold its kinds equally often.
    """
    found = {name: tensor.reshape(-1) if name in SCALARS else tensor for name, tensor in state.items()}
    for bank, kinds in BANKS.items():
        if bank not in state:
            continue
        matrices = found.pop(bank)
        if matrices.ndim != 3 or not len(matrices) or len(matrices) % len(kinds):
            raise FormatError(
                f"tensor {bank}: found {tuple(matrices.shape)}, expected three dimensions, the first a multiple of "
                f"{len(kinds)}; pass a checkpoint of one of the challenge's scripts"
            )
        layers = range(len(matrices) // len(kinds))
        names = [f"blocks.{layer}.{kind}" for kind in kinds for layer in layers]
        found.update(zip(names, matrices.unbind(), strict=True))
    return found
