"""Derive the constants of a model's layers for a GPU's kernels: matrices in limbs, steps, scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from codec.backends.cuda.kernels.matmul import Limbs, limbs
from codec.errors import UnsupportedError
from codec.exact.linear import ExactGate, ExactLinear
from codec.exact.model import ExactLayer
from codec.numerics.widths import OPERAND

_SCORE_BITS = 28  # bits of a product of a query and a key


@dataclass(frozen=True)
class Columns:
    """Column steps of the matrices that read the same normalised rows."""

    steps: Tensor  # float64 [matrices, dim]
    mask: int  # bit i: matrix i has column steps

    @classmethod
    def of(cls, *linears: ExactLinear, bare: bool = False) -> "Columns":
        """Gather the column steps of matrices.

        Args:
            *linears: the matrices.
            bare: append one operand without column steps, which the match model reads.
        """
        ones = torch.ones_like(linears[0].integers[:, 0])
        columns = [*(linear.columns for linear in linears), *([None] if bare else [])]
        steps = [ones if own is None else own for own in columns]
        return cls(torch.stack(steps), sum(1 << i for i, own in enumerate(columns) if own is not None))


@dataclass(frozen=True)
class CudaLayer:
    """A layer's constants."""

    query: Limbs
    key: Limbs
    value: Limbs
    attention_out: Limbs
    up: Limbs
    down: Limbs
    columns: Columns  # of query, key and value; in a parallel layer also of up
    up_columns: Columns
    score_scale: Tensor  # float64 [heads]
    value_scale: Tensor  # float64 [kv_heads]
    value_step: Tensor
    attention_scale: Tensor  # float64 [dim]
    mlp_scale: Tensor
    residual_mix: Tensor  # float64 [2, dim]
    norm: Tensor  # float64 [2]: the scale, and 1 / dim
    xsa: bool
    gate: ExactGate | None
    parallel: bool

    @classmethod
    def of(cls, layer: ExactLayer) -> "CudaLayer":
        """Derive a layer's constants.

        Raises:
            UnsupportedError: the kernels do not compute the layer's integers.
        """
        scores = layer.score_scale.reshape(-1).contiguous()
        if float(scores.abs().max()) * (1 << (_SCORE_BITS + 1)) >= 1 << 30:
            raise UnsupportedError("query gains beyond the levels of scores")
        inputs = (layer.query, layer.key, layer.value, *([layer.up] if layer.parallel else []))
        mix = layer.residual_mix.contiguous()
        return cls(
            query=limbs(layer.query),
            key=limbs(layer.key),
            value=limbs(layer.value),
            attention_out=limbs(layer.attention_out),
            up=limbs(layer.up),
            down=limbs(layer.down, OPERAND * OPERAND),
            columns=Columns.of(*inputs),
            up_columns=Columns.of(layer.up),
            score_scale=scores,
            value_scale=(1 / layer.value_step).reshape(-1).contiguous(),
            value_step=layer.value_step.reshape(-1).contiguous(),
            attention_scale=layer.attention_scale,
            mlp_scale=layer.mlp_scale,
            residual_mix=mix,
            norm=mix.new_tensor([layer.norm_scale, 1.0 / mix.shape[1]]),
            xsa=layer.xsa,
            gate=layer.gate,
            parallel=layer.parallel,
        )
