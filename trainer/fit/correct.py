"""Group corrections: the measured cost of quantizing one kind of matrix, against the cost that its moments predict.

Moments take errors for independent. The errors of a block that runs several times are not: the measured cost of looped
blocks was 2.8 times the prediction. So one group of matrices at a time is quantized, KL(float || quantized) is measured
on rows of calibration text that the moments have not seen, and the group's output moments are multiplied by the ratio.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from codec.console import Advance, ignore_progress
from codec.model.config import AnyConfig
from codec.model.parameters import parameters
from codec.quantization.calibration import Moments
from codec.quantization.quantizers import Matrix
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from trainer.distributed import ALONE, World
from trainer.model.build import FloatModel

BITS = 4.0
"""Bits a weight at which groups are measured: about those of a pack, errors small enough to add up."""

TOKENS = 1 << 14
"""Tokens for a divergence; the standard error is about 1 %."""

CPU_WORK = 1 << 36
"""Parameters times tokens on a CPU: about 20 s a pass on one slow core. 36 million parameters get 2 K tokens, with a
standard error of 3 %."""

LIMIT = 8.0
"""Corrections are at most LIMIT and at least 1 / LIMIT: beyond, the moments are wrong in more than their scale."""

KINDS = {
    "attn.c_q": "attn.q+k",
    "attn.c_k": "attn.q+k",
    "attn.c_v": "attn.v+proj",
    "attn.proj": "attn.v+proj",
    "mlp.fc": "mlp.fc",
    "mlp.fc.inner": "mlp.fc",
    "mlp.fc.outer": "mlp.fc",
    "mlp.proj": "mlp.proj",
    "mlp.proj.inner": "mlp.proj",
    "mlp.proj.outer": "mlp.proj",
}
"""The group of each kind of matrix in a block."""


@dataclass(frozen=True)
class Correction:
    """The cost of one group, in nats a token, when quantized at BITS bits a weight: predicted and measured."""

    group: str
    matrices: tuple[str, ...]
    predicted: float
    measured: float

    @property
    def factor(self) -> float:
        """Return the factor for the moments' prediction; 1 if either cost is not positive."""
        if not (self.predicted > 0 and self.measured > 0):
            return 1.0
        return min(max(self.measured / self.predicted, 1 / LIMIT), LIMIT)


def groups(config: AnyConfig) -> dict[str, list[str]]:
    """Return the names of a model's matrices by group; blocks that run several times have groups of their own."""
    found: dict[str, list[str]] = {}
    for name, parameter in parameters(config).items():
        if parameter.role == "vector":
            continue
        group = name.removesuffix(".weight")
        if name.startswith("blocks."):
            _, layer, kind = group.split(".", 2)
            group = KINDS[kind] + (" looped" if config.schedule.count(int(layer)) > 1 else "")
        found.setdefault(group, []).append(name)
    return found


def tokens_for(model: FloatModel) -> int:
    """Return how many tokens to measure a model on."""
    if model.tok_emb.weight.is_cuda:
        return TOKENS
    return min(TOKENS, CPU_WORK // sum(parameter.numel() for parameter in model.parameters()))


@torch.no_grad()
def measure(
    model: FloatModel,
    moments: Mapping[str, Moments],
    batches: Sequence[Tensor],
    advance: Advance = ignore_progress,
    world: World = ALONE,
) -> list[Correction]:
    """Measure every group; the processes of a run divide the groups among themselves.

    Args:
        model: the float model.
        moments: by weight name.
        batches: text that the moments have not seen, int64 [B, T] each.
        advance: called with this process's work as shares of the whole.
        world: the processes that take part.

    Raises:
        FormatError: a moment that is not positive semidefinite.
    """
    found = groups(model.config)
    mine = [group for number, group in enumerate(found) if number % world.size == world.rank]
    work = sum(len(found[group]) + len(batches) for group in mine)
    device = model.tok_emb.weight.device
    truth = [model.hidden(batch.to(device)) for batch in batches]
    other = copy.deepcopy(model)
    costs = torch.zeros(len(found), 2, dtype=torch.float64, device=device)
    for number, (group, names) in enumerate(found.items()):
        if group not in mine:
            continue
        matrices = [_matrix(model, name, moments[name]) for name in names]
        grid = SensitivityGrid(1.0, states=0)
        rates = [(grid.rates(matrix), matrix.weights.shape[1]) for matrix in matrices]
        unit = unit_for(BITS, rates, sum(matrix.weights.size for matrix in matrices))
        for matrix in matrices:
            error = _error(matrix, unit)
            other.get_parameter(matrix.name).add_(torch.from_numpy(error).to(device))
            costs[number, 0] += predicted(error, matrix.moments)
            advance(1 / work)
        for batch, hidden in zip(batches, truth, strict=True):
            costs[number, 1] += divergence(model.logits(hidden), other(batch.to(device)))
            advance(1 / work)
        for name in names:
            other.get_parameter(name).copy_(model.get_parameter(name))
    costs = world.total(costs)
    costs[:, 1] /= sum(batch.numel() for batch in batches)
    return [
        Correction(group, tuple(names), *cost)
        for (group, names), cost in zip(found.items(), costs.tolist(), strict=True)
    ]


def corrected(moments: Mapping[str, Moments], corrections: Sequence[Correction]) -> dict[str, Moments]:
    """Return the moments with output moments multiplied by the factors of their groups."""
    factors = {name: np.float32(correction.factor) for correction in corrections for name in correction.matrices}
    return {name: Moments(of.inputs, of.outputs * factors[name]) for name, of in moments.items()}


def predicted(error: NDArray[np.float32], moments: Moments) -> float:
    """Return tr(G E H E^T) / 2: the cost in nats a token that the moments predict for an error E [R, C] of a matrix."""
    right = error @ moments.inputs if moments.inputs.ndim == 2 else error * moments.inputs
    left = moments.outputs @ error if moments.outputs.ndim == 2 else moments.outputs[:, None] * error
    return float((left * right).sum(dtype=np.float64)) / 2


def divergence(truth: Tensor, found: Tensor) -> Tensor:
    """Return KL(truth || found) in nats of logits [..., V], summed over all positions: a float64 scalar."""
    nats = F.kl_div(found.log_softmax(-1), truth.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return nats.double().sum()


def _matrix(model: FloatModel, name: str, moments: Moments) -> Matrix:
    return Matrix(name, parameters(model.config)[name].role, model.get_parameter(name).cpu().numpy(), moments)


def _error(matrix: Matrix, unit: float) -> NDArray[np.float32]:
    """Return the quantization error of a matrix, 0 in rows that no text uses, for which there are no moments."""
    found = SensitivityGrid(unit, states=0)(matrix).dequantize() - matrix.weights
    return found * (matrix.moments.row_weights > 0)[:, None]
