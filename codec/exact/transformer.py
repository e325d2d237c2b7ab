"""The networks of the open families in fixed point (`codec.model.transformer`); docs/model-families.md has the bounds.

The network is `trainer.model.transformer`'s, and the arithmetic that of `codec.exact.model`. What is new:

- Norms snap the stream to NORM_BITS, for it has entries a thousand times larger than others. Gains are column steps of
  the matrices behind them, and what a layer norm adds goes into their biases.
- Keys lie on a grid of a power of two for each pair of dimensions that rotate together, from a bound on its length.
  Queries take the inverse, and are snapped row by row, so that products stay within 31 bits.
- SiLU and GELU are the argument times an entry of the table of sigmoids.
- Logits have no softcap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.errors import FormatError
from codec.exact.attention import SOFTMAX_BITS, attend, value_fractions
from codec.exact.bounds import check_transformer
from codec.exact.kv_cache import Context
from codec.exact.linear import OPERAND, ExactLinear, ExactTable, sigmoid
from codec.exact.model import ExactModel
from codec.exact.network import ExactNetwork
from codec.model.transformer import TransformerConfig
from codec.numerics import tables
from codec.numerics.fixed_point import EXACT, SNAP_BITS, power_of_two, reciprocal_sqrt, snap
from codec.numerics.rope import frequencies
from codec.numerics.rotary import rotations
from codec.quantization.quantized import Quantized

NORM_BITS = 20
"""Width of the stream where it is normalised: squares of 2^13 entries add up to less than 2^52."""

PRODUCT_BITS = 30
"""Products of queries and keys are at most 2^PRODUCT_BITS."""

LOG2_E = 1.4426950408889634
LEVELS_PER_NAT = tables.LEVELS_PER_BIT * LOG2_E

LARGEST_LEVEL = 1 << 28
"""Logits saturate there, 65,536 bits from 0."""

GELU_CUBE, GELU_LINE = 0.07135481282052, 1.5957691216057308
"""GELU is x times the sigmoid of GELU_CUBE x^3 + GELU_LINE x: 2 sqrt(2 / pi) (x + 0.044715 x^3) of its approximation by
tanh (Hendrycks and Gimpel 2016)."""

Vectors = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class ExactLayer:
    """The parts of one layer, as tensors on the model's device."""

    query: "Biased"
    key: "Biased"
    value: "Biased"
    attention_out: "Biased"
    up: "Biased"
    down: "Biased"
    query_gain: Tensor | None  # [head_dim] of the norm of heads; None without one
    key_gain: Tensor | None
    key_scale: Tensor  # [kv_heads, head_dim]: powers of two, from a key to its integers
    value_scale: Tensor  # [kv_heads, 1]: powers of two, from a value to its integers


@dataclass(frozen=True)
class Biased:
    """A matrix whose columns take in the gains of the norm before it, and what is added to its products."""

    linear: ExactLinear
    bias: Tensor | None  # float64 [R]

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        """The product of the rows x * step with the matrix, plus the bias."""
        y, step = self.linear(x, step)
        return y * step if self.bias is None else y * step + self.bias


def query_bits(head_dim: int) -> int:
    """Width of a query's integers, sign included, beside keys of SNAP_BITS.

    >>> query_bits(64), query_bits(80), query_bits(128)
    (11, 10, 10)
    """
    return min(SNAP_BITS, PRODUCT_BITS + 1 - (SNAP_BITS - 1) - (head_dim - 1).bit_length())


class ExactTransformer(ExactNetwork):
    """The exact model of a pack of an open family.

    Args:
        config: the model's shape.
        matrices: every matrix and embedding of `codec.model.parameters.parameters(config)`.
        vectors: every vector, any float dtype.
        device: where to compute; the integers do not depend on it.

    Raises:
        FormatError: a sum could exceed 2^53, or an activation float64's range.
    """

    def __init__(
        self,
        config: TransformerConfig,
        matrices: Mapping[str, Quantized],
        vectors: Vectors,
        device: torch.device | str = "cpu",
    ):
        self.config: TransformerConfig = config
        self.device = torch.device(device)
        self._matrices, self._vectors = matrices, vectors
        check_transformer(config, matrices, vectors)
        if config.window << (SOFTMAX_BITS + SNAP_BITS - 1) >= EXACT:
            raise FormatError(f"pack: a window of {config.window} tokens is too long for exact attention sums")
        self.embedding = ExactTable(matrices["tok_emb.weight"], self.device)
        learned = config.positions == "learned"
        self.places = ExactTable(matrices["pos_emb.weight"], self.device) if learned else None
        self.turns = None if learned else torch.from_numpy(tables.turn_table(frequencies(*config.rope))).to(self.device)
        self.head = self._linear("tok_emb" if config.tied_head else "lm_head", "norm")
        self.layers = [self._layer(f"blocks.{i}.") for i in range(config.num_layers)]
        self.query_bits = query_bits(config.head_dim)
        self.score_unit = LEVELS_PER_NAT / math.sqrt(config.head_dim)
        self.sigmoid = self._tensor(tables.sigmoid_table() / (1 << tables.SIGMOID_BITS))
        self.exp2 = self._tensor(tables.exp2_table(SOFTMAX_BITS))

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float64)).to(self.device)

    def _vector(self, name: str) -> NDArray[np.float64] | None:
        found = self._vectors.get(name)
        return None if found is None else found.astype(np.float64)

    def _linear(self, name: str, norm: str = "") -> Biased:
        """A matrix behind a norm, or behind none."""
        weights, bias = self._matrices[name + ".weight"], self._vector(name + ".bias")
        gain, shift = self._vector(norm + ".weight"), self._vector(norm + ".bias")
        if shift is not None:  # of a layer norm: what the matrix makes of it, by the same exact product
            product, step = ExactLinear(name, weights, OPERAND, torch.device("cpu"))(*snap(torch.from_numpy(shift)))
            shifted = (product * step).numpy()
            bias = shifted if bias is None else bias + shifted
        if gain is not None:
            columns = gain if weights.columns is None else weights.columns.astype(np.float64) * gain
            weights = replace(weights, columns=columns)  # in float64, so that the gains are not rounded
        linear = ExactLinear(name + ".weight", weights, OPERAND, self.device)
        return Biased(linear, None if bias is None else self._tensor(bias))

    def _layer(self, block: str) -> ExactLayer:
        c = self.config
        gains = [self._vector(f"{block}attn.{name}_norm.weight") for name in ("q", "k")]
        key, value = (self._linear(f"{block}attn.c_{name}", block + "attn_norm") for name in ("k", "v"))
        longest = (
            self._largest(key) if gains[1] is None else np.tile(np.abs(gains[1]) * c.head_dim**0.5, c.num_kv_heads)
        )
        lengths = longest.reshape(c.num_kv_heads, c.head_dim)
        if c.positions == "rotary":
            first, second = np.split(lengths, 2, axis=1)
            lengths = np.tile(np.sqrt(first * first + second * second), 2)
        values = self._largest(value).reshape(c.num_kv_heads, c.head_dim).max(1)
        fractions = [torch.from_numpy(value_fractions(peaks * peaks)) for peaks in (lengths, values)]
        return ExactLayer(
            query=self._linear(block + "attn.c_q", block + "attn_norm"),
            key=key,
            value=value,
            attention_out=self._linear(block + "attn.proj"),
            up=self._linear(block + "mlp.fc", block + "mlp_norm"),
            down=self._linear(block + "mlp.proj"),
            query_gain=None if gains[0] is None else self._tensor(gains[0]),
            key_gain=None if gains[1] is None else self._tensor(gains[1]),
            key_scale=power_of_two(fractions[0]).to(self.device),
            value_scale=power_of_two(fractions[1])[:, None].to(self.device),
        )

    def _largest(self, matrix: Biased) -> NDArray[np.float64]:
        """Bounds [R] on the entries of products with normalised rows, whose length is at most sqrt(dim)."""
        linear = matrix.linear
        symbols, rows = linear.symbols.cpu().numpy().astype(np.float64), linear.rows.cpu().numpy()
        wide = symbols if linear.columns is None else symbols * linear.columns.cpu().numpy()
        squares = np.array([math.fsum(row) for row in (wide * wide).tolist()])  # rounded once: the same everywhere
        peaks = np.sqrt(squares * self.config.model_dim) * np.abs(rows)
        return peaks if matrix.bias is None else peaks + np.abs(matrix.bias.cpu().numpy())

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the network begins with, float64 [B, T, dim], of tokens at positions [B, T]."""
        x = self.embedding(tokens)
        return x if self.places is None else x + self.places(positions % self.config.window)

    def _run(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x, turn = self.embed(tokens, context.places), None
        if self.turns is not None:
            cos, sin = (part[:, :, None] for part in rotations(self.turns, context.places))
            turn = cos, -sin  # Llama's heads turn the other way than those of `codec.exact.model`
        for n, layer in enumerate(self.layers):
            x = x + self._attention(layer, *self._norm(x), turn, context, n)
            x = x + self._mlp(layer, *self._norm(x))
        return self._norm(x)

    def _norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(X, step) with X * step the normalised rows, before gains and what a layer norm adds."""
        snapped, step = snap(x, NORM_BITS)
        inverse = 1.0 / x.shape[-1]
        if self.config.norm == "layer":
            snapped, finer = snap(snapped * float(x.shape[-1]) - snapped.sum(-1, keepdim=True), NORM_BITS)
            step = step * finer * inverse
        mean = (snapped * snapped).sum(-1, keepdim=True) * step * step * inverse + self.config.norm_epsilon
        return snapped, step * reciprocal_sqrt(mean)

    def _heads(self, x: Tensor, gain: Tensor | None, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries or keys [B, T, heads * head_dim], normalised where the model has gains, and rotated."""
        x = x.unflatten(-1, (-1, self.config.head_dim))
        if gain is not None:
            snapped, step = snap(x)
            squares = (snapped * snapped).sum(-1, keepdim=True)
            mean = squares * step * step * (1.0 / x.shape[-1]) + self.config.norm_epsilon
            x = snapped * (step * reciprocal_sqrt(mean)) * gain
        if turn is not None:
            (a, b), (cos, sin) = x.chunk(2, -1), turn
            x = torch.cat((a * cos + b * sin, b * cos - a * sin), -1)
        return x

    def _attention(
        self, layer: ExactLayer, x: Tensor, step: Tensor, turn: tuple[Tensor, Tensor] | None, context: Context, n: int
    ) -> Tensor:
        """What layer n adds to the stream, float64 [B, T, dim], for normalised rows."""
        c, (batch, length, _) = self.config, x.shape
        query = self._heads(layer.query(x, step), layer.query_gain, turn).unflatten(2, (c.num_kv_heads, -1))
        query, query_step = snap(query / layer.key_scale[:, None], self.query_bits)
        key = _saturated(self._heads(layer.key(x, step), layer.key_gain, turn) * layer.key_scale)
        value = _saturated(layer.value(x, step).unflatten(-1, (c.num_kv_heads, -1)) * layer.value_scale)
        keys, values = context.take(n, key.transpose(1, 2), value.transpose(1, 2))
        query, query_step = (part.permute(0, 2, 3, 1, 4) for part in (query, query_step))
        scale = query_step * self.score_unit
        mixed = attend(query, keys, values, context.first, context.last, scale, self.exp2)
        mixed = mixed / layer.value_scale[:, None, None]
        return layer.attention_out(*snap(mixed.permute(0, 3, 1, 2, 4).reshape(batch, length, -1)))

    def _mlp(self, layer: ExactLayer, x: Tensor, step: Tensor) -> Tensor:
        hidden = layer.up(x, step)
        if self.config.activation == "swiglu":
            gate, hidden = hidden.chunk(2, -1)
            hidden = gate * sigmoid(gate, self.sigmoid) * hidden
        else:
            hidden = hidden * sigmoid((hidden * hidden * GELU_CUBE + GELU_LINE) * hidden, self.sigmoid)
        return layer.down(*snap(hidden))

    @torch.inference_mode()
    def levels(self, hidden: Tensor, step: Tensor) -> Tensor:
        """See `ExactNetwork`."""
        levels = torch.round(self.head(hidden, step) * LEVELS_PER_NAT)
        return levels.clamp(-float(LARGEST_LEVEL), float(LARGEST_LEVEL)).to(torch.int64)


def _saturated(x: Tensor) -> Tensor:
    """Integers of SNAP_BITS."""
    limit = float(1 << (SNAP_BITS - 1))
    return torch.round(x).clamp(-limit, limit)


AnyExact = ExactModel | ExactTransformer
