"""Derive the constants of exact inference from a pack's weights, for the reference and all backends, with numpy alone.

All functions raise FormatError for weights whose sums would not be exact.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError, UnsupportedError
from codec.exact.bounds import check_range
from codec.model.config import ModelConfig
from codec.numerics import tables
from codec.numerics.widths import EXACT, OPERAND, SNAP_BITS, SOFTMAX_BITS
from codec.quantization.quantized import Quantized

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Weights:
    """The weights of a model as a pack keeps them.

    Args:
        config: the model's shape.
        matrices: every matrix, embedding and hash table of `codec.model.parameters.parameters(config)`.
        vectors: every vector, any float dtype.
        sha256: the pack's SHA-256 in hexadecimal; empty if the weights come from no pack.
    """

    config: ModelConfig
    matrices: Mapping[str, Quantized]
    vectors: Mapping[str, NDArray[np.floating]]
    sha256: str = ""


class Attention(NamedTuple):
    """The scales of attention in one layer."""

    score_scale: NDArray[np.float64]  # [heads]: integer score -> 1/LEVELS_PER_BIT bit
    value_fraction: NDArray[np.int64]  # [kv_heads]: fractional bits of the grid of values
    value_scale: float | None  # of the value embeddings; None if the layer adds no value embeddings


def check_known(config: ModelConfig) -> None:
    """Check that a fast backend computes a model's options.

    Raises:
        UnsupportedError: the config has options that only `codec.exact.model` computes.
    """
    options = {
        "factorised embedding": config.embedding_dim > 0,
        "random maps": config.random_rank > 0,
        "value embeddings": config.value_dims > 0,
        "SwiGLU": config.activation == "swiglu",
    }
    if rare := [name for name, on in options.items() if on]:
        raise UnsupportedError(f"they know no {' and no '.join(rare)}")


def layer_scales(config: ModelConfig) -> list[float]:
    """Return 1 / sqrt(layer + 1) on the grid 2^-16 for each layer, or 1 for each without `ln_scale`."""
    if not config.ln_scale:
        return [1.0] * config.num_layers
    return [(math.isqrt((1 << 34) // (i + 1)) + 1) // 2 / (1 << 16) for i in range(config.num_layers)]


def check(weights: Weights) -> None:
    """Check that attention's sums are exact and that activations stay in range (`check_sums` checks matrices)."""
    config = weights.config
    if config.window << (SOFTMAX_BITS + SNAP_BITS - 1) >= EXACT:
        raise FormatError(f"pack: a window of {config.window} tokens is too long for exact attention sums")
    check_range(config, weights.matrices, weights.vectors, layer_scales(config))


def check_sums(name: str, weights: Quantized, operand: int) -> int:
    """Check that products of a matrix with rows of integers up to `operand` are exact in float64.

    Returns:
        The largest sum of a row's absolute integers.
    """
    largest = int(np.abs(weights.symbols).sum(1, dtype=np.int64).max(initial=0))
    if (peak := float(largest) * operand) >= EXACT:
        raise FormatError(
            f"pack: tensor {name}: sums of up to 2^{math.log2(peak):.1f} are not exact in 53 bits; use coarser steps"
        )
    return largest


def query_fraction(config: ModelConfig) -> int:
    """Return the fractional bits of queries and keys, whose length is the square root of a head's width."""
    return SNAP_BITS - 1 - ((config.head_dim - 1).bit_length() + 1) // 2  # ceil(log2(sqrt(head_dim))), without libm


def down_operand(config: ModelConfig) -> int:
    """Return the largest operand of an MLP's second matrix: a square, except with SwiGLU."""
    return OPERAND if config.activation == "swiglu" else OPERAND * OPERAND


def attention(weights: Weights, layer: int) -> Attention:
    """Derive the scales of attention in a layer."""
    c, block = weights.config, f"blocks.{layer}."
    gain = weights.vectors[block + "attn.q_gain"].astype(np.float64)
    unit = tables.LEVELS_PER_BIT * LOG2_E / math.sqrt(c.head_dim) * math.ldexp(1.0, -2 * query_fraction(c))
    scale = layer_scales(c)[layer]
    squares = largest_values(c, weights.matrices[block + "attn.c_v.weight"], c.model_dim * scale * scale)
    value_scale = None
    if c.adds_values(layer):
        value_scale = float(weights.vectors[block + "attn.value_scale"][0])
        longest = squared_lengths(weights.matrices["values.embed.weight"]).max()
        added = largest_values(c, weights.matrices["values.proj.weight"], longest)
        squares = 2 * (squares + added * (value_scale * value_scale))  # (a + b)^2 <= 2 (a^2 + b^2)
    return Attention(gain * unit, value_fractions(squares), value_scale)


def squared_lengths(weights: Quantized) -> NDArray[np.float64]:
    """Compute the squared lengths of a matrix's rows, float64 [R].

    `math.fsum` rounds once, so the results are the same on every machine.
    """
    wide = weights.dequantize().astype(np.float64)
    return np.array([math.fsum(row) for row in (wide * wide).tolist()])


def largest_values(config: ModelConfig, weights: Quantized, squared_length: float) -> NDArray[np.float64]:
    """Bound the squares of a head's entries in products of a matrix with rows (Cauchy-Schwarz).

    Args:
        config: the model's shape.
        weights: the matrix [kv_dim, K].
        squared_length: the largest squared length of a row.

    Returns:
        Bounds float64 [kv_heads].
    """
    per_head = squared_lengths(weights).reshape(config.num_kv_heads, config.head_dim).max(1)
    return per_head * squared_length


def value_fractions(squares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Derive the fractional bits int64 [kv_heads] of the grids of values from bounds on the values' squares."""
    bits = (_exponent(squares).clip(-60, 60) + 1) >> 1  # |v| < 2^bits
    return SNAP_BITS - 1 - bits


def gate_matrix(vectors: NDArray[np.floating]) -> Quantized:
    """Snap the vectors of gates [gates, GATE_INPUTS] like rows, so that sums stay below GATE_INPUTS * 2^28."""
    wide = vectors.astype(np.float64)
    exponent = _exponent(np.abs(wide).max(-1, keepdims=True)).clip(-64, 960)
    symbols = np.rint(np.ldexp(wide, SNAP_BITS - 1 - exponent)).astype(np.int32)
    return Quantized(symbols, np.ldexp(1.0, exponent - SNAP_BITS + 1)[:, 0].astype(np.float32))


def table(weights: Quantized) -> NDArray[np.float64]:
    """Dequantize an embedding or hash table to float64 [R, C], in the order of operations of `codec.exact.linear`."""
    rows = weights.symbols.astype(np.float64) * weights.rows.astype(np.float64)[:, None]
    return rows if weights.columns is None else rows * weights.columns.astype(np.float64)


def _exponent(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Compute `codec.numerics.fixed_point.exponent` with numpy."""
    return ((np.ascontiguousarray(x).view(np.int64) >> 52) & 0x7FF) - 1022
