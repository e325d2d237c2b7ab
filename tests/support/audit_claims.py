"""Claims for several test modules: small folders on disk, and claims in memory."""

import json

import numpy as np

from eval.audit.audit import audit
from eval.audit.claims import Claim
from eval.audit.isolation import HOOK
from eval.audit.rows import Bytes260, Layout, Row
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
        "layout": Layout(not documents, 1024, documents and ends_coded),
        "rows": [Row(1, np.full(n, 70)) for n in lengths],
        "documents": [b"B" * n for n in lengths] if documents else None,
        "original": documents,
        "tokens": [np.full(n, 70) for n in lengths],
        "row_bytes": np.array(lengths),
        "order": np.arange(len(lengths)) if order is None else np.array(order),
        "side_bits": 0.0,
        "scored": len(lengths),
        "left_out": 0,
        "part": "",
        "byte_table": None,
        "counted_bytes": None,
        "tokenizer_bytes": 0,
    }
    return Claim(**{**values, **changes})


FRESH = ["hijklmnop", "another text abcd", "xyz abcdefg", "ABCDEFGHIJKLMNOPQ"]
"""A text of the same source as TEXTS."""


def with_fresh(folder, margin=1.0, texts=FRESH, **words):
    """Audit the claim in `folder` with a fresh text beside it: without one it could hold its own, which is tiny."""
    path = folder.parent / f"{folder.name}-fresh.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return audit(folder, fresh=path, margin=margin, **words)


def by_name(found):
    """The conditions of an audit by name."""
    return {condition.name: condition for condition in found.conditions}


def assert_holds(found):
    """Nothing failed and all was checked, but for what a machine without namespaces cannot."""
    assert found.failed == []
    unchecked = set(found.unchecked) - ({"runs"} if found.isolation["text"] == HOOK else set())
    assert unchecked == set(), unchecked
