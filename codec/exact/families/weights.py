"""Derive the constants of the open families' exact networks from a pack's weights, with numpy alone.

`codec.exact.weights` is the same for the challenge's family. Gains are column steps of the matrices behind a norm, and
what a layer norm adds goes into their biases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.exact.families.bounds import check_range
from codec.exact.weights import LOG2_E, Weights, check_sums, value_fractions
from codec.model.config import AnyConfig
from codec.model.transformer import TransformerConfig
from codec.numerics import tables
from codec.numerics.rope import frequencies
from codec.numerics.widths import EXACT, OPERAND, SNAP_BITS, SOFTMAX_BITS
from codec.quantization.quantized import Quantized

NORM_BITS = 20
"""Width of the stream where it is normalised: squares of 2^13 entries add up to less than 2^52."""

SCORE_BITS = 30
"""Products of queries and keys are at most 2^SCORE_BITS."""

LEVELS_PER_NAT = tables.LEVELS_PER_BIT * LOG2_E

GELU_CUBE, GELU_LINE = 0.07135481282052, 1.5957691216057308
"""GELU is x times the sigmoid of GELU_CUBE x^3 + GELU_LINE x: 2 sqrt(2 / pi) (x + 0.044715 x^3) of its approximation by
tanh (Hendrycks and Gimpel 2016)."""


@dataclass(frozen=True)
class TransformerWeights:
    """The weights of a model of an open family as a pack keeps them; fields as of `codec.exact.weights.Weights`."""

    config: TransformerConfig
    matrices: Mapping[str, Quantized]
    vectors: Mapping[str, NDArray[np.floating]]
    sha256: str = ""


AnyWeights = Weights | TransformerWeights


def weights_of(
    config: AnyConfig, matrices: Mapping[str, Quantized], vectors: Mapping[str, NDArray[np.floating]], sha256: str = ""
) -> AnyWeights:
    """Return the weights of a model of any family."""
    if isinstance(config, TransformerConfig):
        return TransformerWeights(config, matrices, vectors, sha256)
    return Weights(config, matrices, vectors, sha256)


class Biased(NamedTuple):
    """A matrix whose column steps take in the gains of the norm before it, and what is added to its products."""

    name: str
    matrix: Quantized
    bias: NDArray[np.float64] | None  # [R]


class Layer(NamedTuple):
    """The constants of one layer."""

    query: Biased
    key: Biased
    value: Biased
    attention_out: Biased
    up: Biased
    down: Biased
    query_gain: NDArray[np.float64] | None  # [head_dim] of the norm of heads; None without one
    key_gain: NDArray[np.float64] | None
    key_scale: NDArray[np.float64]  # [kv_heads, head_dim]: powers of two, from a key to its integers
    value_scale: NDArray[np.float64]  # [kv_heads]: powers of two, from a value to its integers


def check(weights: TransformerWeights) -> None:
    """Check that attention's sums are exact and that activations stay in range.

    Raises:
        FormatError: a sum could exceed 2^53, or an activation float64's range.
    """
    config = weights.config
    check_range(config, weights.matrices, weights.vectors)
    if config.window << (SOFTMAX_BITS + SNAP_BITS - 1) >= EXACT:
        raise FormatError(f"pack: a window of {config.window} tokens is too long for exact attention sums")


def query_bits(head_dim: int) -> int:
    """Return the width of a query's integers, sign included; keys have SNAP_BITS."""
    return min(SNAP_BITS, SCORE_BITS + 1 - (SNAP_BITS - 1) - (head_dim - 1).bit_length())


def score_unit(config: TransformerConfig) -> float:
    """Return the factor that makes levels of products of queries, times their steps, and keys."""
    return LEVELS_PER_NAT / math.sqrt(config.head_dim)


def turns(config: TransformerConfig) -> NDArray[np.int64] | None:
    """Return `codec.numerics.tables.turn_table` of the model; None where positions are learned."""
    return tables.turn_table(frequencies(*config.rope)) if config.positions == "rotary" else None


def head(weights: TransformerWeights) -> Biased:
    """Return the matrix that makes logits."""
    return _biased(weights, "tok_emb" if weights.config.tied_head else "lm_head", "norm")


def layer(weights: TransformerWeights, number: int) -> Layer:
    """Make the constants of a layer."""
    c, block = weights.config, f"blocks.{number}."
    gains = [_vector(weights, f"{block}attn.{name}_norm.weight") for name in ("q", "k")]
    key, value = (_biased(weights, f"{block}attn.c_{name}", block + "attn_norm") for name in ("k", "v"))
    longest = _largest(c, key) if gains[1] is None else np.tile(np.abs(gains[1]) * c.head_dim**0.5, c.num_kv_heads)
    lengths = longest.reshape(c.num_kv_heads, c.head_dim)
    if c.positions == "rotary":
        first, second = np.split(lengths, 2, axis=1)
        lengths = np.tile(np.sqrt(first * first + second * second), 2)
    values = _largest(c, value).reshape(c.num_kv_heads, c.head_dim).max(1)
    return Layer(
        query=_biased(weights, block + "attn.c_q", block + "attn_norm"),
        key=key,
        value=value,
        attention_out=_biased(weights, block + "attn.proj"),
        up=_biased(weights, block + "mlp.fc", block + "mlp_norm"),
        down=_biased(weights, block + "mlp.proj"),
        query_gain=gains[0],
        key_gain=gains[1],
        key_scale=np.ldexp(1.0, value_fractions(lengths * lengths)),
        value_scale=np.ldexp(1.0, value_fractions(values * values)),
    )


def _vector(weights: TransformerWeights, name: str) -> NDArray[np.float64] | None:
    found = weights.vectors.get(name)
    return None if found is None else found.astype(np.float64)


def _biased(weights: TransformerWeights, name: str, norm: str = "") -> Biased:
    """Return a matrix behind a norm, or behind none."""
    matrix, bias = weights.matrices[name + ".weight"], _vector(weights, name + ".bias")
    gain, shift = _vector(weights, norm + ".weight"), _vector(weights, norm + ".bias")
    if shift is not None:  # of a layer norm: what the matrix makes of it, by the same exact product
        shifted = _product(name + ".weight", matrix, shift)
        bias = shifted if bias is None else bias + shifted
    if gain is not None:
        columns = gain if matrix.columns is None else matrix.columns.astype(np.float64) * gain
        matrix = replace(matrix, columns=columns)  # in float64, so that the gains are not rounded
    return Biased(name + ".weight", matrix, bias)


def _product(name: str, matrix: Quantized, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute `codec.exact.linear.ExactLinear` of one snapped row, float64 [R]."""
    check_sums(name, matrix, OPERAND)
    x, step = _snap(vector)
    if matrix.columns is not None:
        x, finer = _snap(x * matrix.columns.astype(np.float64))
        step = step * finer
    return matrix.symbols.astype(np.float64) @ x * matrix.rows.astype(np.float64) * step


def _snap(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Compute `codec.numerics.fixed_point.snap` of one row."""
    exponent = min(max(math.frexp(float(np.abs(x).max()))[1], -64), 960)
    return np.rint(np.ldexp(x, SNAP_BITS - 1 - exponent)), math.ldexp(1.0, exponent - SNAP_BITS + 1)


def _largest(config: TransformerConfig, found: Biased) -> NDArray[np.float64]:
    """Return bounds [R] on the entries of products with normalised rows, whose length is at most sqrt(dim)."""
    matrix = found.matrix
    wide = matrix.symbols.astype(np.float64)
    if matrix.columns is not None:
        wide = wide * matrix.columns.astype(np.float64)
    squares = np.array([math.fsum(row) for row in (wide * wide).tolist()])  # rounded once: the same everywhere
    peaks = np.sqrt(squares * config.model_dim) * np.abs(matrix.rows.astype(np.float64))
    return peaks if found.bias is None else peaks + np.abs(found.bias)
