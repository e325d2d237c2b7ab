"""Run an artifact of the challenge's baseline as a predictor: the float model with a KV cache, token by token.

A claim's code needs three lines:

    from pathlib import Path
    from eval.audit.challenge_predictor import PeerPredictor

    def make():
        return PeerPredictor(Path("final_model.int8.ptz").read_bytes())
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.errors import CodecError
from eval.audit.predictor import ENDED
from eval.score.challenge import load_peer
from trainer.model.gpt import GPT, Attention
from trainer.model.layers import rms_norm, rotate


class CachedAttention(nn.Module):
    """Attention that gets one position at a time and keeps the keys and values of earlier positions."""

    def __init__(self, attention: Attention, rows: int, window: int):
        super().__init__()
        self.inner = attention
        shape = (rows, attention.kv_heads, window, attention.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.position = 0

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, *_: None) -> Tensor:
        """Attend from x [B, 1, D]; returns [B, 1, D] times scale [D]. cos and sin hold all positions."""
        inner, at = self.inner, self.position

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(len(x), 1, count, inner.head_dim).transpose(1, 2)

        here = cos[at : at + 1], sin[at : at + 1]
        q = rotate(rms_norm(heads(inner.c_q(x), inner.heads)), *here) * inner.q_gain[:, None, None]
        self.keys[:, :, at : at + 1] = rotate(rms_norm(heads(inner.c_k(x), inner.kv_heads)), *here)
        self.values[:, :, at : at + 1] = heads(inner.c_v(x), inner.kv_heads)
        self.position += 1
        known = slice(0, at + 1)
        grouped = inner.kv_heads != inner.heads
        y = F.scaled_dot_product_attention(q, self.keys[:, :, known], self.values[:, :, known], enable_gqa=grouped)
        return scale * inner.proj(y.transpose(1, 2).reshape(x.shape))


class PeerPredictor:
    """The predictor of an artifact in the challenge baseline's format.

    Args:
        blob: the file's bytes.

    Raises:
        CodecError: the file is no such artifact (`eval.score.challenge.load_peer`).
    """

    def __init__(self, blob: bytes):
        state, self._config = load_peer(blob)
        if self._config.skips != "add":
            raise CodecError("the artifact is of a later model, whose layers loop; pass an artifact of the baseline")
        self._model = GPT(self._config).eval()
        self._model.load_state_dict(state)
        self._inner = [m for m in self._model.modules() if isinstance(m, Attention)]  # one for each block, in order

    def reset(self, documents: NDArray[np.int64]) -> None:
        for block, attention in zip(self._model.blocks, self._inner, strict=True):
            block.attn = CachedAttention(attention, len(documents), self._config.window)
        self._last, self._position = documents, 0

    def update(self, tokens: NDArray[np.int64]) -> None:
        self._last, self._position = np.where(tokens == ENDED, self._last, tokens), self._position + 1

    @torch.inference_mode()
    def distribution(self) -> NDArray[np.float64]:
        """Return the probabilities of the next tokens, float64 [B, V]. Raises CodecError for a row over the window."""
        model, config = self._model, self._config
        if self._position >= config.window:
            raise CodecError(f"a row has over {config.window} tokens; use a flat stream with this window")
        x = x0 = rms_norm(model.tok_emb(torch.from_numpy(self._last)[:, None]))
        skips: list[Tensor] = []
        for n, block in enumerate(model.blocks):
            if n >= config.encoder_length and skips:
                x = model.take_skip(n - config.encoder_length, x, skips.pop())
            x = block(x, x0, model.get_buffer("cos"), model.get_buffer("sin"))
            if n < config.encoder_length:
                skips.append(x)
        return model.logits(rms_norm(x))[:, 0].double().softmax(-1).numpy()
