"""Quantization-aware training: the forward pass uses every matrix as a quantizer reconstructs it.

Gradients pass straight through the rounding to the float weights (Bengio et al. 2013), which are the weights trained,
averaged and saved. A matrix is quantized once a forward pass, however often its block runs. Quantizers are those of
`codec.quantization.quantizers` and `codec.quantization.sensitivity` without feedback and trellis; steps are not rounded
to float16.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from codec.errors import FormatError
from codec.model.parameters import parameters
from codec.quantization.calibration import Calibration, load_calibration, moments_of
from codec.quantization.feedback import damped, pivots, upper_factor
from codec.quantization.quantized import power
from codec.quantization.steps import factors
from trainer.model.gpt import GPT, Reduction
from trainer.recipe import TrainRecipe

Weights = dict[str, Tensor]
"""Matrices by name, [R, C] each."""

Rounding = Callable[[Weights], Weights]
"""A function from all matrices of a model to their reconstructions; without gradients."""

GAUSSIAN = math.log2(math.sqrt(2 * math.pi * math.e))
"""Entropy in bits of a Gaussian over its standard deviation; with a uniform step, minus log2 of the step."""


def absmax(bits: int, weights: Tensor) -> Tensor:
    """Round to nearest on 2^bits - 1 levels up to each row's largest absolute value."""
    limit = (1 << (bits - 1)) - 1
    step = weights.abs().amax(1, keepdim=True) / limit
    return nearest(weights, step)


def ternary(weights: Tensor) -> Tensor:
    """Round to -1, 0 and 1 times a row's mean magnitude; weights below half of the row's mean become 0."""
    sizes = weights.abs()
    kept = sizes > 0.5 * sizes.mean(1, keepdim=True)
    mean = (sizes * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return weights.sign() * kept * mean


def binary(weights: Tensor) -> Tensor:
    """Round to the sign times the row's mean magnitude."""
    kept = weights != 0
    mean = weights.abs().sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return weights.sign() * mean


def uniform(bits: float, weights: Tensor) -> Tensor:
    """Round to multiples of one step for the whole matrix, for which an entropy coder needs about `bits` a weight."""
    return nearest(weights, weights.square().mean().sqrt() * 2 ** (GAUSSIAN - bits))


def nearest(weights: Tensor, steps: Tensor) -> Tensor:
    """Return the multiples of steps (0 where the step is 0) that are nearest to weights."""
    safe = torch.where(steps > 0, steps, torch.ones_like(steps))
    return torch.round(weights / safe) * steps


EACH: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": partial(absmax, 8),
    "int6": partial(absmax, 6),
    "int5": partial(absmax, 5),
    "int4": partial(absmax, 4),
    "ternary": ternary,
    "binary": binary,
    "grid3": partial(uniform, 3.0),
    "grid4": partial(uniform, 4.0),
}
"""Strategies by name, for one matrix; grids are named by their bits a weight."""


class SensitivitySteps:
    """The grid of `codec.quantization.sensitivity` in training: a row factor times a column factor times one constant.

    Factors come from moments and stay. The constant, the same for all matrices, follows the weights, so that they
    always need `bits` a weight.

    Args:
        bits: a weight, over all matrices.
        calibration: moments by weight name.
        shapes: of the matrices by name, [R, C] each.
        device: of the weights.

    Raises:
        CodecError: moments of another model, not finite or not positive semidefinite.
    """

    def __init__(
        self, bits: float, calibration: Calibration, shapes: Mapping[str, tuple[int, int]], device: torch.device
    ):
        self.bits = bits
        self.rows: Weights = {}
        self.columns: Weights = {}
        for name, shape in shapes.items():
            moments = moments_of(calibration, name, shape)
            chosen = factors(np.asarray(moments.row_weights), pivots(upper_factor(damped(moments.inputs))))
            self.rows[name] = torch.from_numpy(power(chosen.rows)).to(device)[:, None]
            self.columns[name] = torch.from_numpy(power(chosen.columns)).to(device)

    def __call__(self, weights: Weights) -> Weights:
        """Return the reconstructions of all matrices."""
        unit = self.unit(weights)
        return {name: nearest(matrix, unit * self.rows[name] * self.columns[name]) for name, matrix in weights.items()}

    def unit(self, weights: Weights) -> Tensor:
        """Return the constant at which nonzero rows need `bits` a weight on average, if rows were Gaussian."""
        octaves = count = torch.zeros((), device=next(iter(weights.values())).device)
        for name, matrix in weights.items():
            energy = matrix.square().mean(1)
            alive = energy > 0
            sigma = 0.5 * torch.where(alive, energy, torch.ones_like(energy)).log2()
            rates = sigma - self.rows[name][:, 0].log2() - self.columns[name].log2().mean()
            octaves = octaves + matrix.shape[1] * (rates * alive).sum()
            count = count + matrix.shape[1] * alive.sum()
        return torch.exp2(octaves / count.clamp(min=1) + GAUSSIAN - self.bits)


def rounding_of(model: GPT, plan: TrainRecipe) -> Rounding:
    """Return the quantizer of a recipe.

    Raises:
        FormatError: the recipe's calibration cannot be read, or its quantizer uses no calibration.
        MismatchError: a calibration of another model.
    """
    if plan.qat_calibration:
        if not plan.qat.startswith("grid"):
            raise FormatError(f"recipe: train.qat_calibration is for grids, train.qat is {plan.qat!r}; leave it out")
        shapes = {name: (p.shape[0], p.shape[1]) for name, p in parameters(model.config).items() if p.role != "vector"}
        calibration = load_calibration(plan.qat_calibration)
        return SensitivitySteps(float(plan.qat[4:]), calibration, shapes, model.tok_emb.weight.device)
    each = EACH[plan.qat]
    return lambda weights: {name: each(matrix) for name, matrix in weights.items()}


def straight_through(weights: Weights, rounding: Rounding) -> Weights:
    """Return quantized weights whose gradients are those of the weights."""
    with torch.no_grad():
        added = {name: rounded - weights[name] for name, rounded in rounding(weights).items()}
    return {name: matrix + added[name] for name, matrix in weights.items()}


def quantized_loss(model: GPT, rounding: Rounding) -> Callable[..., Tensor]:
    """Return `model.loss` with every matrix quantized; gradients reach the model's own parameters."""
    roles = parameters(model.config)
    matrices: Weights = {name: tensor for name, tensor in model.named_parameters() if roles[name].role != "vector"}

    def loss(tokens: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
        return functional_call(model, straight_through(matrices, rounding), (tokens, targets, reduction))

    return loss
