"""Define the predictors of the museum: small versions of submitted ideas, each wrong in one way, and two honest ones.

`eval.museum.museum` copies this file into every claim, beside `counts.npy`: how often each token followed each token in
the training text, uint16 [V, V]. All predictors build on that bigram model.
"""

import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.audit.predictor import ENDED, FunctionPredictor

Array = NDArray[np.float64]
Tokens = NDArray[np.int64]

ROW = 16
"""Targets of a row, in exhibits that score a stream."""

PRIOR = 40.0
"""Weight of the unigram distribution, in counts."""


def read(name: str) -> NDArray[np.float64]:
    """Read an array from the claim's folder."""
    return np.load(Path(__file__).parent / name).astype(np.float64)


class Bigram:
    """A bigram model with a fixed table: honest, if weak."""

    def __init__(self) -> None:
        self.counts = read("counts.npy")
        self.unigram = (self.counts.sum(0) + 0.5) / (self.counts.sum() + 0.5 * len(self.counts))

    def reset(self, documents: Tokens) -> None:
        self.last, self.before, self.position = documents, np.zeros_like(documents), 0

    def update(self, tokens: Tokens) -> None:
        self.before, self.last = self.last, np.where(tokens == ENDED, self.last, tokens)
        self.position += 1

    def after(self, tokens: Tokens) -> Array:
        """Return the distribution after each of tokens [N], float64 [N, V]."""
        counts = self.counts[tokens]
        return (counts + PRIOR * self.unigram) / (counts.sum(-1, keepdims=True) + PRIOR)

    def distribution(self) -> Array:
        return self.after(self.last)


class Adaptive(Bigram):
    """A bigram model that learns from every token after the token was scored: honest."""

    def update(self, tokens: Tokens) -> None:
        live = tokens != ENDED
        np.add.at(self.counts, (self.last[live], tokens[live]), 8.0)
        super().update(tokens)


class HashedCache(Bigram):
    """A bigram model mixed with an n-gram cache in hash tables, whose probability is hits over contexts.

    Collisions count hits for tokens that never followed the context, and no step normalises over the vocabulary.
    """

    BUCKETS = 512

    def __init__(self) -> None:
        super().__init__()
        self.contexts, self.hits = np.zeros(self.BUCKETS), np.zeros(self.BUCKETS)

    def context(self) -> Tokens:
        return (self.before * 7919 + self.last * 104729) % self.BUCKETS

    def entry(self, context: Tokens, tokens: Tokens) -> Tokens:
        return (context * 31 + tokens * 2654435761) % self.BUCKETS

    def distribution(self) -> Array:
        context = self.context()
        hits = self.hits[self.entry(context[:, None], np.arange(len(self.unigram)))]
        ratio = np.minimum(hits / np.maximum(self.contexts[context], 1)[:, None], 1)
        return 0.15 * super().distribution() + 0.85 * ratio

    def update(self, tokens: Tokens) -> None:
        live = tokens != ENDED
        context = self.context()[live]
        np.add.at(self.contexts, context, 1)
        np.add.at(self.hits, self.entry(context, tokens[live]), 1)
        super().update(tokens)


class TwoPass(Bigram):
    """A predictor that reads the whole text, then scores the text with a cache of what followed each pair of tokens."""

    def reset(self, documents: Tokens) -> None:
        super().reset(documents)
        self.cache: dict[tuple[int, int], list[int]] = {}

    def peek(self, documents: Sequence[Tokens]) -> None:
        for document in documents:
            tokens = [0, int(self.last[0]), *document.tolist()]
            for before, last, token in zip(tokens, tokens[1:], tokens[2:], strict=False):
                self.cache.setdefault((before, last), []).append(token)

    def distribution(self) -> Array:
        p = super().distribution()
        for row, key in zip(p, zip(self.before.tolist(), self.last.tolist(), strict=True), strict=True):
            if seen := self.cache.get(key):
                row *= 0.05
                np.add.at(row, seen, 0.95 / len(seen))
        return p


class Gate(Bigram):
    """Two experts, one for beginnings of words; the token that is being scored decides which expert is used."""

    def __init__(self) -> None:
        super().__init__()
        self.word_start = read("word_start.npy") > 0
        self.text: Sequence[Tokens] = ()

    def reset(self, documents: Tokens) -> None:
        super().reset(documents)
        self.text = ()

    def peek(self, documents: Sequence[Tokens]) -> None:
        self.text = documents

    def distribution(self) -> Array:
        p = super().distribution()
        for row, document in zip(p, self.text, strict=False):
            if self.position < len(document):
                row *= np.where(self.word_start == self.word_start[document[self.position]], 1.0, 0.01)
                row /= row.sum()
        return p


class FittedDelta(Bigram):
    """A shift of the logits, fitted for each block of 32 tokens by gradient descent on the tokens of that block."""

    BLOCK, STEPS, RATE = 32, 8, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.text: Sequence[Tokens] = ()

    def reset(self, documents: Tokens) -> None:
        super().reset(documents)
        self.text, self.delta = (), np.zeros((len(documents), len(self.unigram)))

    def peek(self, documents: Sequence[Tokens]) -> None:
        self.text = documents

    def fit(self, document: Tokens) -> Array:
        block = document[self.position : self.position + self.BLOCK]
        before = np.concatenate([document[self.position - 1 : self.position] if self.position else [1], block[:-1]])
        p, wanted = self.after(before.astype(np.int64)), np.bincount(block, minlength=len(self.unigram))
        delta = np.zeros(len(self.unigram))
        for _ in range(self.STEPS):
            shifted = p * np.exp(delta)
            delta += self.RATE * (wanted - (shifted / shifted.sum(-1, keepdims=True)).sum(0))
        return delta

    def distribution(self) -> Array:
        if self.position % self.BLOCK == 0:
            for n, document in enumerate(self.text):
                if self.position < len(document):
                    self.delta[n] = self.fit(document)
        p = super().distribution() * np.exp(self.delta)
        return p / p.sum(-1, keepdims=True)


class RootOfPairs(Bigram):
    """A byte model mixed with a token model: each of a token's n bytes gets the n-th root of the token's probability.

    Tokens are pairs of bytes here. The root of a probability is greater than the probability, so the shares of the 256
    bytes sum to more than 1.
    """

    def reset(self, documents: Tokens) -> None:
        super().reset(documents)
        self.first = documents

    def distribution(self) -> Array:
        model = super().distribution()
        if self.position % 2:
            pair = self.after(self.first)[np.arange(len(model)), self.last][:, None] * model
        else:
            self.first = self.last
            pair = model * self.after(np.arange(len(self.unigram))).max(-1)
        return 0.9 * np.sqrt(pair) + 0.1 * model


class LaterRows(Bigram):
    """A predictor that bets on the first tokens of later rows in its batch: in a stream each ends the row before it."""

    def reset(self, documents: Tokens) -> None:
        super().reset(documents)
        self.first = documents

    def distribution(self) -> Array:
        p = super().distribution()
        if self.position == ROW - 1:
            p[:-1] = 0.1 * p[:-1] + 0.9 * np.eye(p.shape[1])[self.first[1:]]
        return p


class Remembers(Bigram):
    """A predictor that brings the text, under xz, and predicts it token by token, one document after the other."""

    def __init__(self) -> None:
        super().__init__()
        packed = (Path(__file__).parent / "text.xz").read_bytes()
        self.text = np.frombuffer(lzma.decompress(packed), np.uint16).astype(np.int64).tolist()
        self.at = 0

    def update(self, tokens: Tokens) -> None:
        super().update(tokens)
        self.at += 1

    def distribution(self) -> Array:
        p = 0.01 * super().distribution()
        p[:, self.text[self.at % len(self.text)]] += 0.99
        return p


def sliding() -> FunctionPredictor:
    """Make an honest predictor: the bigram model mixed with the token counts of a window of 64 that moves by 16."""
    bigram = Bigram()

    def next_token(ids: Tokens) -> Array:
        recent = np.array([np.bincount(row, minlength=len(bigram.unigram)) for row in ids]) + 0.01
        return 0.85 * bigram.after(ids[:, -1]) + 0.15 * recent / recent.sum(-1, keepdims=True)

    return FunctionPredictor(next_token, window=64, stride=16)
