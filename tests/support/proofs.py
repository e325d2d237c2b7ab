"""A proof that several test modules look at, made once: a tiny model, documents of every kind."""

from functools import lru_cache

import codec
from codec.pack.reader import Pack
from eval.proof.prove import Proof, prove
from tests.support.helpers import EVERY_OPTION, random_weights
from trainer.data.sample import sp1024, val_documents

DOCUMENTS = [
    b"Plain words, and then <b>some</b> & more words of the same plain kind.",
    b"",
    b"two lines\nand a\ttab, caf\xc3\xa9 \xe2\x82\xac\n",
    b"\xff\xfe not UTF-8 \x00\x80",
    b"x" * 3000,  # zstandard does this better
    "literal <s> and ▁ and \ufffd".encode(),
    next(iter(val_documents()))[:700],  # longer than the window
]


@lru_cache
def blob() -> bytes:
    """A pack whose weights are random and small: 10 bits a token, which is less than zstandard needs for short text."""
    weights = {n: t * (0.1 if t.ndim == 2 else 1) for n, t in random_weights(EVERY_OPTION).items()}
    return codec.compress(weights, EVERY_OPTION, sp1024())


@lru_cache
def pack() -> Pack:
    """`blob`, opened."""
    return codec.open(blob())


@lru_cache
def proof() -> Proof:
    """DOCUMENTS under `blob()`."""
    return prove(blob(), DOCUMENTS)
