"""Claims for several test modules: small folders on disk, and claims in memory."""

import json

import numpy as np

from eval.audit.claims import Bytes260, Claim, Row
from eval.audit.sandbox import Program

HEAD = """import numpy as np
class P:
    V = 260
    def reset(self, documents):
        self.last, self.position = documents, 0
    def update(self, tokens):
        self.last, self.position = np.where(tokens < 0, self.last, tokens), self.position + 1
    def distribution(self):
        p = np.ones((len(self.last), self.V))
        p[np.arange(len(p)), (self.last + 1) % self.V] = 40
        return p / p.sum(-1, keepdims=True)
def make():
    return P()
"""
"""Bets on the byte after the last one: good at alphabets."""

TEXTS = ["abcdefgh", "the text abcd", "", "xyz xyz xyzz", "ABCDEFGHIJKLMNOP"]


def claim_folder(folder, code=HEAD, texts=TEXTS, claimed=9.0, text="", scored="", tokenizer="byte260", head=""):
    """A claim on disk; `text` and `scored` are lines of its tables."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "predictor.py").write_text(code)
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "claim.toml").write_text(
        f'claimed_bpb = {claimed}\npredictor = "predictor.py:make"\ntokenizer = "{tokenizer}"\n{head}\n'
        f'[text]\npath = "docs.jsonl"\n{text}\n[scored]\n{scored}\n'
    )
    return folder


def claim_of(lengths, order=None, ends_coded=True, documents=True, **changes):
    """A claim in memory of rows with so many targets."""
    values = {
        "name": "one",
        "claimed_bpb": 1.0,
        "program": Program("p.py:make", []),
        "alphabet": Bytes260(),
        "batch": 4,
        "rows": [Row(1, np.full(n, 70)) for n in lengths],
        "documents": [b"B" * n for n in lengths] if documents else None,
        "order": np.arange(len(lengths)) if order is None else np.array(order),
        "ends_coded": ends_coded,
        "side_bits": 0.0,
        "scored": len(lengths),
        "byte_table": None,
        "counted_bytes": None,
    }
    return Claim(**{**values, **changes})
