"""Run the network in fixed point: the integers are the same for every batch shape, thread count and device.

The network is that of `trainer.model.gpt`, with the integers of a pack as weights. Operands of matrix products and
summands of reductions are snapped to grids on which every partial sum is an integer below 2^53
(`codec.numerics.fixed_point`). A bound on each sum is checked when the model is built. Element-wise operations are
separate eager kernels in a fixed order. Notation: a snapped row is `X * step`; a head is [T, head_dim]; an execution is
one run of one layer (a layer in a loop runs several times).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.exact.attention import attend, without_own_value
from codec.exact.linear import (
    ExactGate,
    ExactLinear,
    ExactRandomMap,
    ExactTable,
    sigmoid,
    transposed,
)
from codec.exact.network import Context, ExactNetwork
from codec.exact.weights import Weights, attention, check, down_operand, layer_scales, query_fraction
from codec.model.bigram import bigram_rows
from codec.model.config import GATE_INPUTS, ModelConfig
from codec.model.tokenizer import BOS
from codec.numerics import tables
from codec.numerics.fixed_point import check_products, power_of_two, reciprocal_sqrt, snap, snap_fixed
from codec.numerics.rotary import rotations
from codec.numerics.widths import NORM_EPSILON, OPERAND, SOFTMAX_BITS

_ROWS = 1024  # rows of the embedding in one call; the result does not depend on the number


@dataclass(frozen=True)
class ExactLayer:
    """The parts of one layer, as tensors on the model's device."""

    query: ExactLinear
    key: ExactLinear
    value: ExactLinear
    attention_out: ExactLinear
    up: ExactLinear
    down: ExactLinear
    score_scale: Tensor  # [kv_heads, group, 1, 1]: integer score -> 1/LEVELS_PER_BIT bit
    value_fraction: Tensor  # int64 [kv_heads, 1]: fractional bits of the grid of values
    value_step: Tensor  # [kv_heads, 1]: the step of that grid
    value_scale: Tensor | None  # [1], of the value embeddings; None if the layer adds no value embeddings
    attention_scale: Tensor
    mlp_scale: Tensor
    residual_mix: Tensor  # [2, dim]
    norm_scale: float
    xsa: bool
    gate: ExactGate | None  # one gate for each head
    parallel: bool


class ExactModel(ExactNetwork):
    """The exact model of a pack.

    Args:
        weights: the weights of the pack.
        device: the device that computes; the integers do not depend on the device.

    Raises:
        FormatError: a sum could exceed 2^53, or an activation float64's range.
    """

    def __init__(self, weights: Weights, device: torch.device | str = "cpu"):
        check(weights)
        self.config: ModelConfig = weights.config
        self.weights, self.device = weights, torch.device(device)
        check_products(self.device)
        config, matrices, vectors = weights.config, weights.matrices, weights.vectors
        self._matrices, self._vectors = matrices, vectors
        self.query_fraction = query_fraction(config)
        self.head = self._linear("tok_emb.weight" if config.tied_head else "lm_head.weight")
        self.embedding = ExactTable(matrices["tok_emb.weight"], self.device)
        if config.embedding_dim:
            self.embedding_out = self._linear("embed_proj.weight")
            back = transposed(matrices["embed_proj.weight"])
            self.embedding_back = ExactLinear("embed_proj.weight, transposed", back, OPERAND, self.device)
        if config.smear_gate:
            self.smear_shares = self._smear_shares()
        if config.bigram_buckets:
            self.bigram_table = ExactTable(matrices["bigram.embed.weight"], self.device)
            self.bigram_out = self._linear("bigram.proj.weight")
            self.bigram_scale = self._tensor(vectors["bigram.scale"])
        if config.value_dims:
            self.value_table = ExactTable(matrices["values.embed.weight"], self.device)
            self.value_out = self._linear("values.proj.weight")
        self.layers = [self._layer(i, scale) for i, scale in enumerate(layer_scales(config))]
        if config.encoder_length:
            self.skip_weights = self._tensor(vectors["skip_weights"])
        if config.skips == "gated" and config.encoder_length:
            self.skip_gates = self._tensor(tables.sigmoid(vectors["skip_gates"]))
        turns = tables.rope_turns(config.rope_base, config.rotary_dims, config.window, config.yarn)
        self.turns = torch.from_numpy(turns).to(self.device)
        self.sigmoid = self._tensor(tables.sigmoid_table() / (1 << tables.SIGMOID_BITS))
        self.exp2 = self._tensor(tables.exp2_table(SOFTMAX_BITS))
        self.softcap = torch.from_numpy(tables.softcap_table(config.logit_softcap)).to(self.device)

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float64)).to(self.device)

    def _linear(self, name: str, operand: int = OPERAND) -> ExactLinear:
        return ExactLinear(name, self._matrices[name], operand, self.device)

    def _mlp_linear(self, i: int, kind: Literal["fc", "proj"], operand: int) -> ExactLinear:
        name = f"blocks.{i}.mlp.{kind}"
        if not self.config.random_rank:
            return self._linear(name + ".weight", operand)
        inner, outer = (self._matrices[f"{name}.{part}.weight"] for part in ("inner", "outer"))
        number = 2 * i + (kind == "proj")
        return ExactRandomMap(name, number, self._vectors[name + ".scale"], inner, outer, operand, self.device)

    def _gate(self, name: str) -> ExactGate:
        return ExactGate(name, self._vectors[name].reshape(-1, GATE_INPUTS), self.device)

    def _smear_shares(self) -> Tensor:
        """Compute the share of the previous token's embedding that each token adds, float64 [V].

        The share of BOS is 0, because no token precedes BOS.
        """
        gate = self._gate("smear.gate")
        tokens = torch.arange(self.config.vocab_size, device=self.device)
        parts = [gate(*self._norm(self._embedded(part), 1.0))[:, 0] for part in tokens.split(_ROWS)]
        shares = torch.cat(parts) * self._tensor(self._vectors["smear.scale"])
        shares[BOS] = 0.0
        return shares

    def _layer(self, i: int, norm_scale: float) -> ExactLayer:
        c, block = self.config, f"blocks.{i}."
        scales = attention(self.weights, i)
        fraction = torch.from_numpy(scales.value_fraction)[:, None].to(self.device)
        return ExactLayer(
            query=self._linear(block + "attn.c_q.weight"),
            key=self._linear(block + "attn.c_k.weight"),
            value=self._linear(block + "attn.c_v.weight"),
            attention_out=self._linear(block + "attn.proj.weight"),
            up=self._mlp_linear(i, "fc", OPERAND),
            down=self._mlp_linear(i, "proj", down_operand(c)),
            score_scale=self._tensor(scales.score_scale).view(c.num_kv_heads, -1, 1, 1),
            value_fraction=fraction,
            value_step=power_of_two(-fraction),
            value_scale=None if scales.value_scale is None else self._tensor(np.array([scales.value_scale])),
            attention_scale=self._tensor(self._vectors[block + "attn_scale"]),
            mlp_scale=self._tensor(self._vectors[block + "mlp_scale"]),
            residual_mix=self._tensor(self._vectors[block + "resid_mix"]),
            norm_scale=norm_scale,
            xsa=i >= c.num_layers - c.xsa_layers,
            gate=self._gate(block + "attn.gate") if c.attention_gate else None,
            parallel=c.parallel(i),
        )

    def _run(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        c = self.config
        x = first = self.start(tokens, context.previous, context.positions)
        cos, sin = (part[:, :, None] for part in rotations(self.turns, context.positions))
        added = self._project(self.value_out, *snap(self.value_table(tokens))) if c.value_dims else None
        skips: list[Tensor] = []
        for n, i in enumerate(c.schedule):
            if n >= c.encoder_length and skips:
                j = n - c.encoder_length
                skip = self.skip_weights[j] * skips.pop()
                x = x + skip if c.skips == "add" else skip + self.skip_gates[j] * (x - skip)
            layer = self.layers[i]
            x = x * layer.residual_mix[0] + first * layer.residual_mix[1]
            mixed = self._attention(layer, x, added, (cos, sin), context, n)
            attended = x + layer.attention_scale * mixed
            x = attended + layer.mlp_scale * self._mlp(layer, x if layer.parallel else attended)
            if n < c.encoder_length:
                skips.append(x)
        return self._norm(x, 1.0)

    @property
    def starts_alone(self) -> bool:
        """Return whether `start` depends on nothing but the token itself."""
        return not (self.config.bigram_buckets or self.config.smear_gate)

    @torch.inference_mode()
    def start(self, tokens: Tensor, previous: Tensor | None, positions: Tensor) -> Tensor:
        """Compute the residual stream before the first block, float64 [B, T, dim].

        Args:
            tokens: int64 [B, T].
            previous: int64 [B, 1], the tokens before the rows; None if the rows begin documents.
            positions: int64 [B, T].
        """
        normed, step = self._norm(self.embed(tokens, previous, positions), 1.0)
        return normed * step

    @torch.inference_mode()
    def embed(self, tokens: Tensor, previous: Tensor | None, positions: Tensor) -> Tensor:
        """Compute the embeddings before the first norm, float64 [B, T, dim]; the arguments are those of `start`."""
        x = self._embedded(tokens)
        if self.config.smear_gate:
            before = torch.cat((x[:, :1] if previous is None else self._embedded(previous), x[:, :-1]), 1)
            shares = torch.where(positions == 0, 0.0, self.smear_shares[tokens])
            x = x + shares[..., None] * before
        if not self.config.bigram_buckets:
            return x
        rows = bigram_rows(tokens, self.config.bigram_buckets, previous)
        rows = torch.where(positions == 0, self.config.bigram_buckets - 1, rows)
        return x + self._project(self.bigram_out, *snap(self.bigram_table(rows))) * self.bigram_scale

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self._project(self.embedding_out, *snap(x)) if self.config.embedding_dim else x

    def _norm(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Normalise rows (RMS norm times `scale`); return (X, step), where X * step are the normalised rows."""
        snapped, step = snap(x)
        squares = (snapped * snapped).sum(-1, keepdim=True)
        mean = squares * step * step * (1.0 / x.shape[-1]) + NORM_EPSILON
        return snapped, step * reciprocal_sqrt(mean) * scale

    def _project(self, linear: ExactLinear, x: Tensor, step: Tensor) -> Tensor:
        y, step = linear(x, step)
        return y * step

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Normalise and rotate the heads of queries or keys.

        Args:
            x: float64 [B, T, heads, head_dim].
            cos: cosines float64 [B, T, 1, pairs].
            sin: sines float64 [B, T, 1, pairs].

        Returns:
            Integers float64 [B, heads, T, head_dim].
        """
        snapped, step = self._norm(x, 1.0)
        x = snapped * step
        half = self.config.rotary_dims // 2
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = torch.cat((a * cos + b * sin, b * cos - a * sin, x[..., 2 * half :]), -1)
        return snap_fixed(turned, self.query_fraction).transpose(1, 2)

    def _attention(
        self, layer: ExactLayer, x: Tensor, added: Tensor | None, turn: tuple[Tensor, Tensor], context: Context, n: int
    ) -> Tensor:
        """Compute the output of attention in execution n, float64 [B, T, dim].

        Args:
            layer: the layer of the execution.
            x: float64 [B, T, dim], the residual stream.
            added: float64 [B, T, kv_dim], the value embeddings, or None.
            turn: cosines and sines float64 [B, T, 1, pairs].
            context: the keys and values that the rows see.
            n: the number of the execution.
        """
        c, (batch, length, _) = self.config, x.shape
        normed, step = self._norm(x, layer.norm_scale)
        query = self._rotated(self._project(layer.query, normed, step).view(batch, length, c.num_heads, -1), *turn)
        key = self._rotated(self._project(layer.key, normed, step).view(batch, length, c.num_kv_heads, -1), *turn)
        value = self._project(layer.value, normed, step)
        if layer.value_scale is not None and added is not None:
            value = value + layer.value_scale * added
        value = value.view(batch, length, c.num_kv_heads, -1)
        value = snap_fixed(value, layer.value_fraction).transpose(1, 2)
        keys, values = context.take(n, key, value)
        query = query.reshape(batch, c.num_kv_heads, -1, length, c.head_dim)
        mixed = attend(query, keys, values, context.first, context.last, layer.score_scale, self.exp2)
        if layer.xsa:
            mixed = without_own_value(mixed, value[:, :, None])
        mixed = mixed * layer.value_step[:, None, None]
        mixed = mixed.reshape(batch, c.num_heads, length, c.head_dim).transpose(1, 2)
        if layer.gate is not None:
            mixed = mixed * layer.gate(normed, step)[..., None]
        mixed = mixed.reshape(batch, length, -1)
        return self._project(layer.attention_out, *snap(mixed))

    def _mlp(self, layer: ExactLayer, x: Tensor) -> Tensor:
        hidden = self._project(layer.up, *self._norm(x, layer.norm_scale))
        if self.config.activation == "swiglu":
            gate, hidden = hidden.chunk(2, -1)
            return self._project(layer.down, *snap(gate * sigmoid(gate, self.sigmoid) * hidden))
        slope = 0.0 if self.config.activation == "relu2" else 0.5
        hidden, step = snap(torch.maximum(hidden, hidden * slope))
        return self._project(layer.down, hidden * hidden, step * step)

    @torch.inference_mode()
    def levels(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Compute levels, softcapped logits in units of 1/LEVELS_PER_BIT bit.

        Args:
            hidden: the snapped last hidden state from `forward` or `step`, float64 [..., dim].
            step: the steps of its rows, float64 [..., 1].

        Returns:
            Levels int64 [..., V].
        """
        if self.config.embedding_dim:
            hidden, step = snap(self._project(self.embedding_back, hidden, step))
        logits = self._project(self.head, hidden, step)
        index = torch.round(logits.abs() * float(tables.LOGIT_GRID)).clamp(max=float(len(self.softcap) - 1))
        capped = self.softcap[index.to(torch.int64)]
        return torch.where(logits < 0, -capped, capped)
