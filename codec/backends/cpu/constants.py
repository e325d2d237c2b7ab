"""Derive a model's constants for `codec.backends.cpu.network`: matrices in blocks, layers stacked."""

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.backends.cpu.matmul import block_shape, fill_blocks
from codec.devices import threaded
from codec.errors import UnsupportedError
from codec.exact.weights import Weights, attention, check_sums, down_operand, gate_matrix, layer_scales, query_fraction
from codec.model.config import GATE_INPUTS
from codec.numerics import tables
from codec.numerics.widths import OPERAND
from codec.quantization.quantized import Quantized


class Linear(NamedTuple):
    """A matrix of every layer, stacked."""

    integers: NDArray[np.int16]  # [layers, R / COLUMNS, K / 2, COLUMNS, 2]: `matmul.fill_blocks` of [R, K]
    rows: NDArray[np.float64]  # [layers, R]
    columns: NDArray[np.float64]  # [layers, K]
    has_columns: NDArray[np.bool_]  # [layers]; columns are read only where true
    digit_bits: NDArray[np.int64]  # [layers]: the width of an operand's digits, so that sums fit 32 bits
    digit_count: NDArray[np.int64]  # [layers]: digits of an operand


class Network(NamedTuple):
    """The constants of a model, with the names of `codec.exact.model`."""

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
    gate: Linear  # a gate for each head; read with attention_gate
    sigmoid: NDArray[np.float64]
    slope: float  # slope of the activation below 0
    gated: bool  # skips are gated
    skip_weights: NDArray[np.float64]  # [skips, dim]
    skip_gates: NDArray[np.float64]  # [skips, dim]; read if gated
    query_scale: float
    turns: NDArray[np.int64]  # [2, rows, rotary_dims / 2]


def network(weights: Weights) -> Network:
    """Derive a model's constants.

    Raises:
        UnsupportedError: integers have more than 16 bits, as in no pack of a model that this package makes.
        FormatError: sums would not be exact (`codec.exact.weights`).
    """
    c, vectors, layers = weights.config, weights.vectors, range(weights.config.num_layers)

    def matrices(name: str, operand: int = OPERAND) -> Linear:
        names = [f"blocks.{i}.{name}.weight" for i in layers]
        return linear({name: weights.matrices[name] for name in names}, operand)

    def stack(name: str) -> NDArray[np.float64]:
        return np.stack([vectors[f"blocks.{i}.{name}"].astype(np.float64) for i in layers])

    skips = np.zeros((2, max(1, c.encoder_length), c.model_dim))
    if c.encoder_length:
        skips[0] = vectors["skip_weights"]
    if c.encoder_length and c.skips == "gated":
        skips[1] = tables.sigmoid(vectors["skip_gates"])
    scales = [attention(weights, i) for i in layers]
    value_step = np.ldexp(1.0, -np.stack([scale.value_fraction for scale in scales]))
    closed = np.zeros((c.num_heads, GATE_INPUTS))
    gates = {
        name: gate_matrix(vectors[name].reshape(-1, GATE_INPUTS) if c.attention_gate else closed)
        for name in (f"blocks.{i}.attn.gate" for i in layers)
    }
    return Network(
        schedule=np.array(c.schedule),
        encoder_length=c.encoder_length,
        query=matrices("attn.c_q"),
        key=matrices("attn.c_k"),
        value=matrices("attn.c_v"),
        attention_out=matrices("attn.proj"),
        up=matrices("mlp.fc"),
        down=matrices("mlp.proj", down_operand(c)),
        score_scale=np.stack([scale.score_scale for scale in scales]),
        value_scale=1 / value_step,
        value_step=value_step,
        attention_scale=stack("attn_scale"),
        mlp_scale=stack("mlp_scale"),
        residual_mix=stack("resid_mix"),
        norm_scale=np.array(layer_scales(c)),
        xsa=np.array([i >= c.num_layers - c.xsa_layers for i in layers]),
        parallel=np.array([c.parallel(i) for i in layers]),
        attention_gate=c.attention_gate,
        gate=linear(gates),
        sigmoid=sigmoid(),
        slope=0.0 if c.activation == "relu2" else 0.5,
        gated=c.skips == "gated",
        skip_weights=skips[0],
        skip_gates=skips[1],
        query_scale=math.ldexp(1.0, query_fraction(c)),
        turns=tables.rope_turns(c.rope_base, c.rotary_dims, c.window, c.yarn),
    )


def sigmoid() -> NDArray[np.float64]:
    """Return `tables.sigmoid_table` in units of 1."""
    return tables.sigmoid_table() / (1 << tables.SIGMOID_BITS)


def linear(layers: Mapping[str, Quantized], operand: int = OPERAND) -> Linear:
    """Stack a matrix of every layer.

    Args:
        layers: the matrices, by name.
        operand: the largest integer of a row that the matrices multiply.

    Raises:
        UnsupportedError: integers have more than 16 bits.
        FormatError: sums would not be exact.
    """
    matrices = list(layers.values())
    rows, width = matrices[0].symbols.shape
    integers = np.zeros((len(layers), *block_shape(rows, width)), np.int16)
    numbered = enumerate(layers.items())
    digits = threaded([partial(_fill, integers[i], name, layer, operand) for i, (name, layer) in numbered])
    columns = np.ones((len(layers), width))
    for i, layer in enumerate(matrices):
        if layer.columns is not None:
            columns[i] = layer.columns
    bits, counts = np.array(digits).T.copy()
    steps = np.stack([layer.rows.astype(np.float64) for layer in matrices])
    return Linear(integers, steps, columns, np.array([m.columns is not None for m in matrices]), bits, counts)


def _fill(out: NDArray[np.int16], name: str, layer: Quantized, operand: int) -> tuple[int, int]:
    """Arrange the integers of one matrix in `out`, and choose the digits of its operands; errors as of `linear`."""
    largest = check_sums(name, layer, operand)
    if layer.largest >= 1 << 15:
        raise UnsupportedError("integers of more than 16 bits")
    fill_blocks(np.ascontiguousarray(layer.symbols), out)
    return _digits(float(largest), operand if layer.columns is None else OPERAND)


def _digits(weight: float, operand: int) -> tuple[int, int]:
    """Choose the width and the number of an operand's signed digits.

    A digit of b bits is at most 2^(b-1) in magnitude. The width keeps sums of products with digits below 2^31.

    Args:
        weight: the largest sum of the absolute integers of a matrix's row.
        operand: the largest operand.

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
