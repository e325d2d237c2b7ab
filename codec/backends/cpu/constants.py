"""A model's constants as `codec.backends.cpu.kernels` reads them: matrices in blocks, operands in digits, layers
stacked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from codec.backends.cpu.matmul import blocks
from codec.errors import UnsupportedError
from codec.exact.linear import ExactGate, ExactLinear
from codec.exact.model import OPERAND, ExactModel
from codec.model.config import GATE_INPUTS


class Linear(NamedTuple):
    """The same matrix of every layer."""

    integers: NDArray[
        np.int16
    ]  # [layers, R / COLUMNS, K / 2, COLUMNS, 2]: `codec.backends.cpu.matmul.blocks` of [layers, R, K]
    rows: NDArray[np.float64]  # [layers, R]
    columns: NDArray[np.float64]  # [layers, K]
    has_columns: NDArray[np.bool_]  # [layers]; elsewhere columns are not read
    digit_bits: NDArray[np.int64]  # [layers]: operands are multiplied in digits of this width, so that sums fit 32 bits
    digit_count: NDArray[np.int64]  # [layers]


class Network(NamedTuple):
    """The constants of a model; `codec.exact.model` says what they are."""

    schedule: NDArray[np.int64]
    encoder_length: int
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    up: Linear
    down: Linear
    score_scale: NDArray[np.float64]  # [layers, heads]
    value_scale: NDArray[np.float64]  # [layers, kv_heads]: one over value_step
    value_step: NDArray[np.float64]  # [layers, kv_heads]
    attention_scale: NDArray[np.float64]  # [layers, dim]
    mlp_scale: NDArray[np.float64]  # [layers, dim]
    residual_mix: NDArray[np.float64]  # [layers, 2, dim]
    norm_scale: NDArray[np.float64]  # [layers]
    xsa: NDArray[np.bool_]  # [layers]
    parallel: NDArray[np.bool_]  # [layers]
    attention_gate: bool
    gate: Linear  # of the heads, read with attention_gate
    sigmoid: NDArray[np.float64]
    slope: float  # of the activation below 0
    gated: bool
    skip_weights: NDArray[np.float64]  # [skips, dim]
    skip_gates: NDArray[np.float64]  # [skips, dim], read where gated
    query_scale: float
    turns: NDArray[np.int64]  # [2, rows, rotary_dims / 2]


def network(model: ExactModel) -> Network:
    """A model's constants.

    Raises:
        UnsupportedError: integers of more than 16 bits; no quantizer of this package makes them.
    """
    c, layers = model.config, model.layers

    def stack(values: list[torch.Tensor], *shape: int) -> NDArray[np.float64]:
        return torch.stack(values).reshape(len(values), *shape).numpy()

    no_skips = torch.zeros(max(1, c.encoder_length), c.model_dim, dtype=torch.float64)
    skip_weights = model.skip_weights if c.encoder_length else no_skips
    skip_gates = model.skip_gates if c.encoder_length and c.skips == "gated" else no_skips
    closed = ExactGate("", np.zeros((c.num_heads, GATE_INPUTS)), model.device)
    value_step = stack([layer.value_step for layer in layers], c.num_kv_heads)
    return Network(
        schedule=np.array(c.schedule),
        encoder_length=c.encoder_length,
        query=linear([layer.query for layer in layers]),
        key=linear([layer.key for layer in layers]),
        value=linear([layer.value for layer in layers]),
        attention_out=linear([layer.attention_out for layer in layers]),
        up=linear([layer.up for layer in layers]),
        down=linear([layer.down for layer in layers], OPERAND * OPERAND),
        score_scale=stack([layer.score_scale for layer in layers], c.num_heads),
        value_scale=1 / value_step,
        value_step=value_step,
        attention_scale=stack([layer.attention_scale for layer in layers], c.model_dim),
        mlp_scale=stack([layer.mlp_scale for layer in layers], c.model_dim),
        residual_mix=stack([layer.residual_mix for layer in layers], 2, c.model_dim),
        norm_scale=np.array([layer.norm_scale for layer in layers]),
        xsa=np.array([layer.xsa for layer in layers]),
        parallel=np.array([layer.parallel for layer in layers]),
        attention_gate=c.attention_gate,
        gate=linear([(layer.gate or closed).linear for layer in layers]),
        sigmoid=closed.table.numpy(),
        slope=0.0 if c.activation == "relu2" else 0.5,
        gated=c.skips == "gated",
        skip_weights=skip_weights.numpy(),
        skip_gates=skip_gates.numpy(),
        query_scale=2.0**model.query_fraction,
        turns=model.turns.numpy(),
    )


def linear(layers: Sequence[ExactLinear], operand: int = OPERAND) -> Linear:
    """One matrix of every layer, for operands up to `operand`; raises as `network`."""
    integers = np.stack([layer.symbols.numpy() for layer in layers])
    if integers.dtype != np.int16:
        raise UnsupportedError("integers of more than 16 bits")
    has_columns = np.array([layer.columns is not None for layer in layers])
    columns = np.ones((len(layers), integers.shape[2]))
    digits = []
    for i, layer in enumerate(layers):
        if layer.columns is not None:
            columns[i] = layer.columns.numpy()
        digits.append(
            _digits(float(np.abs(integers[i].astype(np.int64)).sum(1).max()), OPERAND if has_columns[i] else operand)
        )
    bits, counts = np.array(digits).T.copy()
    rows = np.stack([layer.rows.numpy() for layer in layers])
    return Linear(blocks(integers), rows, columns, has_columns, bits, counts)


def _digits(weight: float, operand: int) -> tuple[int, int]:
    """Width and number of the signed digits of operands up to `operand`.

    Args:
        weight: the largest sum of a row's absolute integers.

    A digit of b bits is at most 2^(b-1), so that sums of products with it stay below 2^31.

    >>> _digits(4676.0, 1 << 14), _digits(4676.0, 1 << 28), _digits(2.0**20, 1 << 28)
    ((15, 1), (15, 2), (11, 3))
    """
    bits, count = 15, 1
    while weight * (1 << (bits - 1)) >= 1 << 31:
        bits -= 1
    half = 1 << (bits - 1)
    while operand > half:
        operand = (operand + half) >> bits
        count += 1
    return bits, count
