"""Compute the embeddings of tokens, and of pairs of a token and the token before, on a processor."""

import numpy as np
from numpy.typing import NDArray

from codec.backends.cpu.constants import linear, sigmoid
from codec.backends.cpu.elementwise import norm, snap_rows
from codec.backends.cpu.matmul import project
from codec.backends.cpu.network import gate_rows
from codec.exact.weights import Weights, gate_matrix, table
from codec.model.config import GATE_INPUTS
from codec.model.tokenizer import BOS
from codec.numerics.pair_hash import pair_hash

Integers = NDArray[np.int64]


class Embedding:
    """`codec.exact.model.ExactModel.embed` of single tokens.

    Raises:
        UnsupportedError: integers have more than 16 bits.
        FormatError: sums would not be exact.
    """

    def __init__(self, weights: Weights):
        c, matrices, vectors = weights.config, weights.matrices, weights.vectors
        self._tokens = table(matrices["tok_emb.weight"])
        self._shares = self._pairs = None
        if c.smear_gate:
            gate = linear({"smear.gate": gate_matrix(vectors["smear.gate"].reshape(1, GATE_INPUTS))})
            shares = gate_rows(gate, 0, sigmoid(), *norm(self._tokens, 1.0))[:, 0]
            self._shares = shares * vectors["smear.scale"].astype(np.float64)
            self._shares[BOS] = 0.0
        if c.bigram_buckets:
            self._pairs = table(matrices["bigram.embed.weight"])
            self._pairs_out = linear({"bigram.proj.weight": matrices["bigram.proj.weight"]})
            self._pairs_scale = vectors["bigram.scale"].astype(np.float64)

    def __call__(self, tokens: Integers, previous: Integers, positions: Integers) -> NDArray[np.float64]:
        """Compute the embeddings float64 [n, dim] of tokens.

        Args:
            tokens: int64 [n].
            previous: int64 [n], the token before each token (any value at position 0).
            positions: int64 [n].
        """
        x = self._tokens[tokens]
        if self._shares is not None:
            shares = np.where(positions == 0, 0.0, self._shares[tokens])
            x = x + shares[:, None] * self._tokens[previous]
        if self._pairs is not None:
            last = len(self._pairs) - 1
            rows = np.where((tokens == BOS) | (positions == 0), last, pair_hash(tokens, previous, last))
            x = x + project(self._pairs_out, 0, *snap_rows(self._pairs[rows])) * self._pairs_scale
        return x
