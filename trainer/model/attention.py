"""Causal attention of queries to keys and values, over whole rows or within the documents of a row."""

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from codec.model.tokenizer import BOS


class SlidingWindow:
    """Sliding-window attention over documents in chunks: each token sees the last `window` tokens, itself included.

    The first chunks are of all documents. Later chunks are of the documents that go on, which come first and are as
    long as the chunk. Each layer keeps the keys and values of the last `window` - 1 tokens of each document.
    """

    def __init__(self, window: int):
        self.window, self.begin, self.end = window, 0, 0  # the positions of the chunk
        self._last: Tensor | None = None
        self._past: deque[tuple[Tensor, Tensor]] = deque()  # of each layer execution, the next first

    def enter(self, tokens: Tensor) -> Tensor:
        """Go on to the next chunks, int64 [B, T], and return them behind the token before each, if any."""
        self.begin, self.end = self.end, self.end + tokens.shape[1]
        before, self._last = self._last, tokens[:, -1:]
        return tokens if before is None else torch.cat((before[: len(tokens)], tokens), 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute `attend` of a layer on the chunks."""
        if self.begin:
            k, v = (torch.cat((old[: len(q)], new), 2) for old, new in zip(self._past.popleft(), (k, v), strict=True))
        key = torch.arange(k.shape[2], device=q.device)
        self._past.append(
            (k[:, :, max(0, len(key) - self.window + 1) :], v[:, :, max(0, len(key) - self.window + 1) :])
        )
        query = key[-q.shape[2] :, None]
        seen = (key <= query) & (key > query - self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])


Mask = Tensor | BlockMask | SlidingWindow
"""Which keys a query sees: bool [B, 1, T, T], the mask of flex attention's kernel, or a sliding window."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None) -> Tensor:
    """Compute softmax attention, causal without a mask.

    Args:
        q: [B, H, T, d].
        k: [B, KV, T, d], KV a divisor of H.
        v: [B, KV, T, d].
        mask: the keys that each query sees; None: all up to the query.

    Returns:
        [B, H, T, d].
    """
    if isinstance(mask, SlidingWindow):
        return mask.attend(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        found = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
        assert isinstance(found, Tensor)  # other arguments would return a pair
        return found
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def document_mask(tokens: Tensor) -> Mask:
    """Return the mask that keeps attention causal and within documents of int64 tokens [B, T].

    A document begins with BOS or with the row. In a compiled kernel on a GPU, blocks of keys that a block of queries
    cannot see cost nothing. The kernel's shapes depend on those of the tokens alone, so no batch is compiled anew.
    """
    return block_mask(tokens) if tokens.is_cuda and torch.compiler.is_compiling() else dense_mask(tokens)


def dense_mask(tokens: Tensor) -> Tensor:
    """Return `document_mask` as bool [B, 1, T, T], True where a query (the third dimension) sees a key."""
    documents, length = _documents(tokens), tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    return (causal & (documents[:, :, None] == documents[:, None]))[:, None]


def block_mask(tokens: Tensor) -> BlockMask:
    """Return `document_mask` in the form of flex attention."""
    documents, (batch, length) = _documents(tokens), tokens.shape

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    return create_block_mask(sees, batch, None, length, length, device=tokens.device)


def _documents(tokens: Tensor) -> Tensor:
    """Return the number of each token's document in its row, int32 [B, T]."""
    return (tokens == BOS).cumsum(1, dtype=torch.int32)
