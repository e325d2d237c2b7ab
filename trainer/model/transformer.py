"""The float model of the open families (`codec.model.transformer`), plain single-device PyTorch.

`codec.exact.families.transformer` computes the same network in fixed point. The methods are those of
`trainer.model.gpt.GPT`, so that calibration, corrections and retuning take either.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import MismatchError
from codec.model.transformer import TransformerConfig
from codec.numerics.rope import frequencies
from trainer.model.attention import SlidingWindow, attend
from trainer.model.gpt import Reduction, token_loss
from trainer.model.layers import rotate


class Linear(nn.Linear):
    """A matrix, and a bias where the model has one: float32 parameters, used in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Norm(nn.Module):
    """RMS norm with gains, or layer norm with gains and a bias, computed in float32, in the dtype of the input."""

    def __init__(self, size: int, epsilon: float, layer: bool = False):
        super().__init__()
        self.epsilon, self.weight = epsilon, nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if layer else None

    def forward(self, x: Tensor) -> Tensor:
        """Rows [..., size]."""
        shape = self.weight.shape
        if self.bias is None:
            return F.rms_norm(x.float(), shape, self.weight, self.epsilon).to(x.dtype)
        return F.layer_norm(x.float(), shape, self.weight, self.bias, self.epsilon).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c = config
        self.head_dim = c.head_dim
        self.c_q = Linear(c.model_dim, c.q_dim, c.qkv_bias)
        self.c_k = Linear(c.model_dim, c.kv_dim, c.qkv_bias)
        self.c_v = Linear(c.model_dim, c.kv_dim, c.qkv_bias)
        self.q_norm = Norm(c.head_dim, c.norm_epsilon) if c.qk_norm else None
        self.k_norm = Norm(c.head_dim, c.norm_epsilon) if c.qk_norm else None
        self.proj = Linear(c.q_dim, c.model_dim, c.biases)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; `turn` are cosines and sines [T, head_dim / 2]."""
        parts = (matrix(x).unflatten(-1, (-1, self.head_dim)) for matrix in (self.c_q, self.c_k, self.c_v))
        q, k, v = (part.transpose(1, 2) for part in parts)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = rotate(q.float(), *turn), rotate(k.float(), *turn)
        y = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two matrices with GELU between them, or with SwiGLU, whose gates are the first half of `fc`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.fc = Linear(config.model_dim, config.up_dim, config.biases)
        self.proj = Linear(config.hidden_dim, config.model_dim, config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        if not self.gated:
            return self.proj(F.gelu(self.fc(x), approximate="tanh"))
        gate, up = self.fc(x).chunk(2, -1)
        return self.proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attn_norm, self.mlp_norm = (
            Norm(config.model_dim, config.norm_epsilon, config.norm == "layer") for _ in range(2)
        )
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the residual stream x [B, T, D] behind this block."""
        x = x + self.attn(self.attn_norm(x), turn)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """The model of a config. Its state dict is `codec.model.parameters.parameters(config)`, all float32.

    Args:
        config: the shape.
        dtype: of the residual stream and of the matrix products; norms, rotations and the loss are float32 always.
    """

    def __init__(self, config: TransformerConfig, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.tok_emb = nn.Embedding(config.vocab_size, config.model_dim)
        self.pos_emb = nn.Embedding(config.window, config.model_dim) if config.positions == "learned" else None
        self.lm_head = None if config.tied_head else Linear(config.model_dim, config.vocab_size, False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = Norm(config.model_dim, config.norm_epsilon, config.norm == "layer")
        self.bigram = self.values = None  # which only `trainer.model.gpt` has
        if self.pos_emb is None:
            angles = torch.arange(config.window, dtype=torch.float64)[:, None] * torch.tensor(
                [float(f) for f in frequencies(*config.rope)], dtype=torch.float64
            )
            self.register_buffer("cos", angles.cos().float(), persistent=False)
            # `rotate` turns the other way than Llama's heads.
            self.register_buffer("sin", -angles.sin().float(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
        """Return the logits, float32 [B, T, V], of tokens int64 [B, T]; given targets, their `token_loss`.

        Raises:
            MismatchError: T is greater than the config's window.
        """
        logits = self.logits(self.hidden(tokens))
        return logits if targets is None else token_loss(logits, targets, reduction)

    def hidden(self, tokens: Tensor, sliding: SlidingWindow | None = None) -> Tensor:
        """Return the last hidden state behind its norm [B, T, D], for `logits`; arguments and errors as of `forward`.

        Chunks of a `sliding` are whole windows, and a document begins anew behind each: nothing is taken from it.
        """
        length = tokens.shape[1]
        if length > self.config.window:
            raise MismatchError(f"model: rows of {length} tokens, but its window is {self.config.window}")
        x, turn = self.tok_emb(tokens), None
        if self.pos_emb is not None:
            x = x + self.pos_emb(torch.arange(length, device=tokens.device))
        else:
            turn = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        x = x.to(self.dtype)
        for block in self.blocks:
            x = block(x, turn)
        return self.norm(x)

    def before_head(self, hidden: Tensor) -> Tensor:
        """Return what the matrix of the last layer is multiplied with: `hidden` itself."""
        return hidden

    @property
    def head(self) -> Tensor:
        """Return the matrix of the last layer, [V, D]."""
        return (self.lm_head or self.tok_emb).weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, float32 [..., V], of hidden states of `hidden`."""
        return F.linear(hidden, self.head.to(hidden.dtype)).float()

    def loss(self, tokens: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Return `token_loss` of the model's own logits of tokens int64 [B, T]."""
        return self(tokens, targets, reduction)
