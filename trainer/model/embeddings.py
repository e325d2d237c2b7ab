"""The embeddings of a token beside its own table row: of pairs, of values, of the token before."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.model.bigram import bigram_rows
from codec.model.config import GATE_INPUTS, ModelConfig
from codec.model.tokenizer import BOS
from trainer.model.layers import Linear, rms_norm

BIGRAM_STD = 0.01


class Bigram(nn.Module):
    """BigramHash: a table row for each pair of neighbouring tokens, projected onto the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed = nn.Embedding(config.bigram_buckets, config.bigram_dim)
        nn.init.normal_(self.embed.weight, std=BIGRAM_STD)
        self.proj = Linear(config.bigram_dim, config.model_dim, zero=True)
        self.scale = nn.Parameter(torch.full((1,), 0.05))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the addition to the embedding, `dtype` [B, T, D], of tokens int64 [B, T]."""
        rows = bigram_rows(tokens, self.embed.num_embeddings)
        return self.scale.to(dtype) * self.proj(self.embed(rows).to(dtype))


class Values(nn.Module):
    """Value embeddings: a small table row of each token, projected onto the values of all heads."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.value_dims)
        nn.init.normal_(self.embed.weight, std=BIGRAM_STD)
        self.proj = Linear(config.value_dims, config.kv_dim, zero=True)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the value embeddings of tokens int64 [B, T]: `dtype` [B, T, KV d]. Each layer scales and adds them."""
        return self.proj(self.embed(tokens).to(dtype))


class Smear(nn.Module):
    """SmearGate: a gated share of the previous token's embedding is added, never across documents."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(GATE_INPUTS))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the embeddings x [B, T, D] of tokens int64 [B, T], smeared."""
        gates = torch.sigmoid(rms_norm(x)[..., :GATE_INPUTS] @ self.gate.to(x.dtype))
        shares = torch.where(tokens == BOS, 0.0, self.scale.to(x.dtype) * gates)
        return x + shares[..., None] * F.pad(x, (0, 0, 1, -1))
