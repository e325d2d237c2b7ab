"""The networks of the open families in fixed point (`codec.model.transformer`); docs/model-families.md has the bounds.

The network is `trainer.model.transformer`'s, and the arithmetic that of `codec.exact.model`. What is new:

- Norms snap the stream to NORM_BITS, for it has entries a thousand times larger than others. Gains are column steps of
  the matrices behind them, and what a layer norm adds goes into their biases.
- Keys lie on a grid of a power of two for each pair of dimensions that rotate together, from a bound on its length.
  Queries take the inverse, and are snapped row by row, so that products stay within 31 bits.
- SiLU and GELU are the argument times an entry of the table of sigmoids.
- Logits have no softcap.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.exact.attention import attend
from codec.exact.families import weights as constants
from codec.exact.families.weights import GELU_CUBE, GELU_LINE, LEVELS_PER_NAT, NORM_BITS, AnyWeights, TransformerWeights
from codec.exact.linear import ExactLinear, ExactTable, sigmoid
from codec.exact.model import ExactModel
from codec.exact.network import Context, ExactNetwork
from codec.model.transformer import TransformerConfig
from codec.numerics import tables
from codec.numerics.fixed_point import check_products, reciprocal_sqrt, snap
from codec.numerics.rotary import rotations
from codec.numerics.widths import LARGEST_LEVEL, OPERAND, SNAP_BITS, SOFTMAX_BITS


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
        """Compute the product of the rows x * step with the matrix, plus the bias."""
        y, step = self.linear(x, step)
        return y * step if self.bias is None else y * step + self.bias


class ExactTransformer(ExactNetwork):
    """Compute the exact model of a pack of an open family.

    Args:
        weights: what the pack holds.
        device: where to compute; the integers do not depend on it.

    Raises:
        FormatError: a sum could exceed 2^53, or an activation float64's range.
    """

    def __init__(self, weights: TransformerWeights, device: torch.device | str = "cpu"):
        constants.check(weights)
        self.config: TransformerConfig = weights.config
        self.weights, self.device = weights, torch.device(device)
        check_products(self.device)
        config, matrices = weights.config, weights.matrices
        self.embedding = ExactTable(matrices["tok_emb.weight"], self.device)
        learned = config.positions == "learned"
        self.places = ExactTable(matrices["pos_emb.weight"], self.device) if learned else None
        turns = constants.turns(config)
        self.turns = None if turns is None else torch.from_numpy(turns).to(self.device)
        self.head = self._biased(constants.head(weights))
        self.layers = [self._layer(constants.layer(weights, i)) for i in range(config.num_layers)]
        self.query_bits = constants.query_bits(config.head_dim)
        self.score_unit = constants.score_unit(config)
        self.sigmoid = self._tensor(tables.sigmoid_table() / (1 << tables.SIGMOID_BITS))
        self.exp2 = self._tensor(tables.exp2_table(SOFTMAX_BITS))

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float64)).to(self.device)

    def _biased(self, found: constants.Biased) -> Biased:
        linear = ExactLinear(found.name, found.matrix, OPERAND, self.device)
        return Biased(linear, None if found.bias is None else self._tensor(found.bias))

    def _layer(self, found: constants.Layer) -> ExactLayer:
        return ExactLayer(
            query=self._biased(found.query),
            key=self._biased(found.key),
            value=self._biased(found.value),
            attention_out=self._biased(found.attention_out),
            up=self._biased(found.up),
            down=self._biased(found.down),
            query_gain=None if found.query_gain is None else self._tensor(found.query_gain),
            key_gain=None if found.key_gain is None else self._tensor(found.key_gain),
            key_scale=self._tensor(found.key_scale),
            value_scale=self._tensor(found.value_scale[:, None]),
        )

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Compute the input of the first layer, float64 [B, T, dim], of tokens at positions [B, T]."""
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
        """Return (X, step) with X * step the normalised rows, before gains and what a layer norm adds."""
        snapped, step = snap(x, NORM_BITS)
        inverse = 1.0 / x.shape[-1]
        if self.config.norm == "layer":
            snapped, finer = snap(snapped * float(x.shape[-1]) - snapped.sum(-1, keepdim=True), NORM_BITS)
            step = step * finer * inverse
        mean = (snapped * snapped).sum(-1, keepdim=True) * step * step * inverse + self.config.norm_epsilon
        return snapped, step * reciprocal_sqrt(mean)

    def _heads(self, x: Tensor, gain: Tensor | None, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Make queries or keys [B, T, heads * head_dim], normalised where the model has gains, and rotated."""
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
        """Compute the summand of layer n's attention, float64 [B, T, dim], for normalised rows."""
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
    """Round, and clamp to integers of SNAP_BITS."""
    limit = float(1 << (SNAP_BITS - 1))
    return torch.round(x).clamp(-limit, limit)


AnyExact = ExactModel | ExactTransformer


def exact_model(weights: AnyWeights, device: torch.device | str = "cpu") -> AnyExact:
    """Return the exact model of any family; errors as of the models."""
    if isinstance(weights, TransformerWeights):
        return ExactTransformer(weights, device)
    return ExactModel(weights, device)
