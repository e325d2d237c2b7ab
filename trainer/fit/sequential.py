"""Quantize a model again, group by group: what is still in floating point is trained to make up for what is integers.

The embedding comes first, then block after block. Each group is quantized at the steps that its pack has, with error
feedback and the trellis run again on the weights as trained. Its errors are then known, and all tensors after it are
trained against the float model, to minimise KL(float || model). So later groups take in what earlier groups lost
(sequential quantization with drift correction), and weights move through the quantizer before they are rounded.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from codec.console import Advance, ignore_progress
from codec.model.config import AnyConfig
from codec.model.parameters import parameters
from codec.pack.blas import one_blas_thread
from codec.quantization.calibration import Calibration, moments_of
from codec.quantization.feedback import Codebook, damped, quantize_columns, upper_factor
from codec.quantization.quantized import Quantized
from trainer.fit.correct import divergence
from trainer.model.build import FloatModel

LEARNING_RATE = 3e-4
"""Adam's rate at the first step after each group, falling linearly to 0. On a model of 2.8 million parameters at 2.6
bits a weight, 20 steps of 1,024 tokens after each of the first five groups at 3e-4 lower the divergence by 4 %. At 1e-3
the divergence after the first group is three times that of 3e-4."""


def quantization_order(config: AnyConfig) -> list[list[str]]:
    """Return the names of the matrices in groups: those outside the blocks, then those of each block."""
    found: dict[int, list[str]] = {-1: []}
    for name, parameter in parameters(config).items():
        if parameter.role != "vector":
            block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
            found.setdefault(block, []).append(name)
    return [found[block] for block in sorted(found)]


def again(matrix: Quantized, weights: Tensor, inputs: np.ndarray) -> Quantized:
    """Quantize weights [R, C] at the steps of a matrix, with feedback by the inputs' moment."""
    assert matrix.grid is not None
    rows, columns = matrix.grid.row_steps(), matrix.grid.column_steps()
    codebook = Codebook(rows.astype(np.float64), columns.astype(np.float64), matrix.states, matrix.on)
    exact = weights.detach().cpu().double().numpy()
    return replace(matrix, symbols=quantize_columns(exact, upper_factor(damped(inputs)), codebook))


def requantize(
    reference: FloatModel,
    model: FloatModel,
    matrices: Mapping[str, Quantized],
    calibration: Calibration | None,
    batches: Sequence[Tensor],
    steps: int,
    advance: Advance = ignore_progress,
) -> dict[str, Quantized]:
    """Quantize `model` group by group; it then holds the quantized matrices and the vectors as trained.

    Args:
        reference: the float model.
        model: a copy of it on the same device.
        matrices: of a pack of the model, with steps by row and column.
        calibration: moments by matrix.
        batches: training text, int64 [B, T] each, used in turn.
        steps: of Adam after each group but the last.
        advance: called with 1 for every step.

    Returns:
        the matrices by name, at the steps of `matrices`.
    """
    device = reference.tok_emb.weight.device
    groups = quantization_order(reference.config)
    found: dict[str, Quantized] = {}
    used = 0
    with one_blas_thread(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for group in groups:

            def one(name: str) -> Quantized:
                moments = moments_of(calibration, name, matrices[name].symbols.shape)
                return again(matrices[name], model.get_parameter(name), moments.inputs)

            for name, matrix in zip(group, pool.map(one, group), strict=True):
                found[name] = matrix
                with torch.no_grad():
                    model.get_parameter(name).copy_(torch.from_numpy(matrix.dequantize()))
            if group is groups[-1]:
                break
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in found)
            left = [parameter for parameter in model.parameters() if parameter.requires_grad]
            adam = torch.optim.Adam(left, betas=(0.9, 0.99))
            for step in range(steps):
                batch = batches[used % len(batches)].to(device)
                used += 1
                with torch.no_grad():
                    target = reference(batch)
                adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
                (divergence(target, model(batch)) / batch.numel()).backward()
                adam.step()
                adam.zero_grad(set_to_none=True)
                advance(1)
    return found
