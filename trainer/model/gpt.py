"""The float model: a decoder-only transformer of the challenge's family, plain single-device PyTorch.

`codec.exact.model` computes the same network in fixed point; the order of the arithmetic here is the order there.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import MismatchError
from codec.model.config import GATE_INPUTS, ModelConfig
from trainer.kernels.fusion import PLAIN, Fusion
from trainer.model.attention import Mask, SlidingWindow, attend, document_mask
from trainer.model.cross_entropy import Taught, softcapped_cross_entropy
from trainer.model.embeddings import Bigram, Smear, Values
from trainer.model.layers import EPS, Linear, RandomMap, rms_norm, rope_tables, rotate

Reduction = Literal["mean", "sum", "none"]

EMBEDDING_STD = 0.005  # the challenge's TIED_EMBED_INIT_STD


class Attention(nn.Module):
    """Causal grouped-query attention with QK norm and RoPE.

    `xsa` removes the component of the output along the position's own value. With gates, each head's output is
    multiplied by a sigmoid of the first entries of the input.
    """

    def __init__(self, config: ModelConfig, xsa: bool, adds_values: bool, qk_gain: float, fuse: Fusion):
        super().__init__()
        dim, self.fuse = config.model_dim, fuse
        self.heads, self.kv_heads, self.head_dim, self.xsa = config.num_heads, config.num_kv_heads, config.head_dim, xsa
        self.c_q = Linear(dim, dim)
        self.c_k = Linear(dim, config.kv_dim)
        self.c_v = Linear(dim, config.kv_dim)
        self.proj = Linear(dim, dim, zero=True)
        self.gate = nn.Parameter(torch.zeros(config.num_heads, GATE_INPUTS)) if config.attention_gate else None
        self.value_scale = nn.Parameter(torch.full((1,), 0.1)) if adds_values else None
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), qk_gain))

    def split(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Split x [B, T, D] into queries [B, H, T, d], keys and values [B, KV, T, d], queries and keys rotated."""
        if self.fuse.joint:
            matrices = [matrix.weight for matrix in (self.c_q, self.c_k, self.c_v)]
            joint = self.fuse.product(x, torch.cat(matrices))
            if self.fuse.heads:
                return self.fuse.split_heads(joint, self.q_gain, cos, sin, self.heads, self.kv_heads)
            parts: tuple[Tensor, ...] = joint.split([len(m) for m in matrices], -1)
        else:
            parts = self.c_q(x), self.c_k(x), self.c_v(x)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        q = rotate(rms_norm(q.float()), cos, sin) * self.q_gain[:, None, None]
        k = rotate(rms_norm(k.float()), cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, mask: Mask | None, added: Tensor | None
    ) -> Tensor:
        """Return the output [B, T, D] of x [B, T, D], times scale [D]; added [B, T, KV d] are value embeddings."""
        batch, length, dim = x.shape
        q, k, v = self.split(x, cos, sin)
        if self.value_scale is not None and added is not None:
            v = v + self.value_scale.to(v.dtype) * added.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        y, gates = attend(q, k, v, mask), None
        if self.gate is not None:
            gates = torch.sigmoid(F.linear(x[..., :GATE_INPUTS], self.gate.to(x.dtype)))  # [B, T, H]
        if self.xsa and self.fuse.xsa:
            y = self.fuse.without_own_value(y, v, gates)
        else:
            y = without_own_value(y, v) if self.xsa else y
            y = y if gates is None else y * gates.transpose(1, 2)[..., None]
        return self.proj.scaled(y.transpose(1, 2).reshape(batch, length, dim), scale, self.fuse)


def without_own_value(y: Tensor, v: Tensor) -> Tensor:
    """Return attention output without its component along the position's own value (XSA).

    Args:
        y: the output [B, H, T, d].
        v: [B, KV, T, d], the values; a head takes that of its group.
    """
    groups = y.unflatten(1, (v.shape[1], -1)).float()
    own = v.unsqueeze(2).float()
    share = (groups * own).sum(-1, keepdim=True) / (own * own).sum(-1, keepdim=True).clamp_min(EPS)
    return (groups - share * own).flatten(1, 2).to(y.dtype)


class MLP(nn.Module):
    """Two matrices with an activation between them; with SwiGLU, the gates are the first half of `fc`."""

    def __init__(self, config: ModelConfig, layer: int, fuse: Fusion):
        super().__init__()
        self.fuse, self.gated = fuse, config.activation == "swiglu"
        self.slope = 0.5 if config.activation == "leaky_relu2" else 0.0
        self.fc: Linear | RandomMap = Linear(config.model_dim, config.up_dim)
        self.proj: Linear | RandomMap = Linear(config.hidden_dim, config.model_dim, zero=True)
        if rank := config.random_rank:
            self.fc = RandomMap(2 * layer, config.model_dim, config.up_dim, rank)
            self.proj = RandomMap(2 * layer + 1, config.hidden_dim, config.model_dim, rank, zero=True)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the output [B, T, D] of x [B, T, D], times scale [D]."""
        if self.fuse.mlp:
            return self.fuse.mlp_of(x, self.fc.weight, scale[:, None] * self.proj.weight, self.slope)
        h = self.fuse.product(x, self.fc.weight) if self.fuse.joint else self.fc(x)
        if self.gated:
            gate, h = h.chunk(2, -1)
            return self.proj.scaled(F.silu(gate) * h, scale, self.fuse)
        h = F.leaky_relu(h, self.slope) if self.slope else F.relu(h)
        return self.proj.scaled(h.square(), scale, self.fuse)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream; the stream is first mixed with the embedding.

    In a parallel layer, the MLP reads the stream without the output of attention.
    """

    def __init__(self, config: ModelConfig, layer: int, qk_gain: float, fuse: Fusion):
        super().__init__()
        dim = config.model_dim
        self.norm_scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        xsa = layer >= config.num_layers - config.xsa_layers
        self.attn = Attention(config, xsa, config.adds_values(layer), qk_gain, fuse)
        self.mlp = MLP(config, layer, fuse)
        self.parallel = config.parallel(layer)
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(dim), torch.zeros(dim))))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask | None = None,
        added: Tensor | None = None,
        skip: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the residual stream x [B, T, D] after this block.

        Args:
            x: the stream before the block.
            x0: the stream before the first block, [B, T, D].
            cos: of the rotations, float32 [T, rotary_dims / 2].
            sin: of the rotations, float32 [T, rotary_dims / 2].
            mask: the keys that each query sees; None: all up to the query.
            added: value embeddings [B, T, KV d].
            skip: an activation [B, T, D] and the factors [D] of itself and of x, by which the two are first summed.
        """
        mix = self.resid_mix
        if skip is None:
            x = mix[0].to(x.dtype) * x + mix[1].to(x.dtype) * x0
        else:  # factors of channels are multiplied out, so that each large tensor has one
            other, share, kept = skip
            a, b, c = (factor.to(x.dtype) for factor in (mix[0] * kept, mix[0] * share, mix[1]))
            x = a * x + b * other + c * x0
        normed = rms_norm(x) * self.norm_scale
        x = x + self.attn(normed, cos, sin, self.attn_scale, mask, added)
        if not self.parallel:
            normed = rms_norm(x) * self.norm_scale
        return x + self.mlp(normed, self.mlp_scale)


class GPT(nn.Module):
    """The model of a config. Its state dict is `codec.model.parameters.parameters(config)`, all float32.

    Args:
        config: the shape.
        qk_gain: initial value of the query heads' gains.
        dtype: of the residual stream and of the matrix products; norms, rotations and the loss are always float32.
        fuse: optimizations for training.
        document_masks: whether no token sees another document of its row, as if each document were a row.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        qk_gain: float = 1.5,
        dtype: torch.dtype = torch.float32,
        fuse: Fusion = PLAIN,
        document_masks: bool = False,
    ):
        super().__init__()
        self.config, self.dtype, self.fuse, self.document_masks = config, dtype, fuse, document_masks
        self.schedule, self.teaching = config.schedule, NOBODY
        self.tok_emb = nn.Embedding(config.vocab_size, config.embedding_dim or config.model_dim)
        nn.init.normal_(self.tok_emb.weight, std=EMBEDDING_STD)
        self.embed_proj = Linear(config.embedding_dim, config.model_dim) if config.embedding_dim else None
        self.lm_head = None if config.tied_head else Linear(config.model_dim, config.vocab_size, zero=True)
        self.smear = Smear() if config.smear_gate else None
        self.bigram = Bigram(config) if config.bigram_buckets else None
        self.values = Values(config) if config.value_dims else None
        self.blocks = nn.ModuleList(Block(config, layer, qk_gain, fuse) for layer in range(config.num_layers))
        if skips := config.encoder_length:
            self.skip_weights = nn.Parameter(torch.ones(skips, config.model_dim))
            if config.skips == "gated":
                self.skip_gates = nn.Parameter(torch.zeros(skips, config.model_dim))
        cos, sin = rope_tables(config, config.window)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
        """Return the softcapped logits, float32 [B, T, V], of tokens int64 [B, T]; given targets, their `token_loss`.

        Raises:
            MismatchError: T is greater than the config's window.
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return self.logits(hidden)
        if reduction == "mean" and torch.is_grad_enabled():
            x, cap = self.before_head(hidden), self.config.logit_softcap
            taught = self.teaching.taught(tokens)
            return softcapped_cross_entropy(x, self.head, targets, cap, own=self.fuse.loss, taught=taught)
        return token_loss(self.logits(hidden), targets, reduction)

    def loop(self, on: bool) -> None:
        """Switch the config's loops on, or off: then each layer runs once."""
        self.schedule = self.config.schedule if on else tuple(range(self.config.num_layers))

    def hidden(self, tokens: Tensor, sliding: SlidingWindow | None = None) -> Tensor:
        """Return the normalised last hidden state [B, T, D] of tokens int64 [B, T], the input of `logits`.

        Args:
            tokens: a row of at most the config's window, or with `sliding` the next chunks, of any length.
            sliding: the sliding window of the documents; None: rows are independent.

        Raises:
            MismatchError: without `sliding`, T is greater than the config's window.
        """
        length = tokens.shape[1]
        mask: Mask | None = sliding
        if sliding is not None:
            x = self.embed(sliding.enter(tokens))[:, -length:]
            cos, sin = (part.to(tokens.device) for part in rope_tables(self.config, length, sliding.begin))
        else:
            if length > self.config.window:
                raise MismatchError(
                    f"model: rows of {length} tokens, expected at most its window of {self.config.window}"
                )
            cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
            mask = document_mask(tokens) if self.document_masks else None
            x = self.embed(tokens)
        x = x0 = rms_norm(x)
        added = None if self.values is None else self.values(tokens, self.dtype)
        skips: list[Tensor] = []
        encoder_length = len(self.schedule) // 2
        for execution, layer in enumerate(self.schedule):
            skip = None
            if execution >= encoder_length and skips:
                # The outermost skips join the same layers whether loops run or not.
                index = self.config.encoder_length - len(skips)
                if self.fuse.joint:
                    skip = skips.pop(), *self.skip_factors(index)
                else:
                    x = self.take_skip(index, x, skips.pop())
            x = self.blocks[layer](x, x0, cos, sin, mask, added, skip)
            if execution < encoder_length:
                skips.append(x)
        return rms_norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of the first block, [B, T, D], of tokens int64 [B, T]."""
        x = self.tok_emb(tokens).to(self.dtype)
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        if self.smear is not None:
            x = self.smear(x, tokens)
        if self.bigram is not None:
            x = x + self.bigram(tokens, self.dtype)
        return x

    def before_head(self, hidden: Tensor) -> Tensor:
        """Return the input of the output head's matrix, [..., D]; with a factorised embedding, [..., embedding_dim]."""
        return hidden if self.embed_proj is None else hidden @ self.embed_proj.weight.to(hidden.dtype)

    @property
    def head(self) -> Tensor:
        """Return the matrix of the output head: [V, D], or [V, embedding_dim] with a factorised embedding."""
        return (self.lm_head or self.tok_emb).weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the softcapped logits, float32 [..., V], of a hidden state of `hidden`."""
        logits = F.linear(self.before_head(hidden), self.head.to(self.dtype)).float()
        return self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)

    def take_skip(self, index: int, x: Tensor, skip: Tensor) -> Tensor:
        """Mix an activation of the first half into the stream x [B, T, D] of the second."""
        s = self.skip_weights[index].to(x.dtype) * skip
        if self.config.skips == "add":
            return x + s
        return s + torch.sigmoid(self.skip_gates[index]).to(x.dtype) * (x - s)

    def skip_factors(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the factors by which `take_skip` multiplies the skip and the stream, [D] each."""
        weight = self.skip_weights[index]
        if self.config.skips == "add":
            return weight, torch.ones_like(weight)
        gate = torch.sigmoid(self.skip_gates[index])
        return weight * (1 - gate), gate

    def loss(self, tokens: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return the `token_loss` of the model's own logits of tokens int64 [B, T]."""
        return self(tokens, targets, reduction)


@dataclass(frozen=True)
class Teaching:
    """A model whose probabilities a training step learns besides the text.

    Attributes:
        teacher: the model; None: there is none.
        share: of the teacher in the loss.
    """

    teacher: GPT | None = None
    share: float = 0.0

    def taught(self, tokens: Tensor) -> Taught | None:
        """Return what the teacher says after tokens int64 [B, T]."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            hidden = self.teacher.before_head(self.teacher.hidden(tokens))
        return Taught(hidden, self.teacher.head, self.teacher.config.logit_softcap, self.share)


NOBODY = Teaching()
"""No teacher."""


def token_loss(logits: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the cross-entropy in nats of targets int64 [B, T] under logits [B, T, V].

    The result is a scalar, or float32 [B, T] for the reduction "none".
    """
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
    return losses.view_as(targets) if reduction == "none" else losses
