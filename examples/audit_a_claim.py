"""Claim a score with a predictor of ten lines, and have the claim audited: run, coded, decoded, compared."""

import json
import tempfile
from pathlib import Path

from eval.audit.audit import audit

PREDICTOR = """
import numpy as np
from eval.audit.predictor import FunctionPredictor

def next_token(ids):                         # int64 [B, T] -> probabilities [B, 260]
    p = np.ones((len(ids), 260))
    p[np.arange(len(ids)), ids[:, -1]] = 20  # the last byte again, perhaps
    return p / p.sum(-1, keepdims=True)

def make():
    return FunctionPredictor(next_token)
"""
CLAIM = """
claimed_bpb = 7.5                            # too good to be true
predictor = "predictor.py:make"
files = []
tokenizer = "byte260"
[text]
path = "text.jsonl"
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "claim.toml").write_text(CLAIM)
    (folder / "predictor.py").write_text(PREDICTOR)
    (folder / "text.jsonl").write_text(json.dumps({"text": "Whoever claims a score shows the bytes. " * 4}) + "\n")
    found = audit(folder)

print(f"{found.verdict}: claimed {found.claimed_bpb}, coded {found.honest_bpb:.3f} bits per byte")
for condition in found.conditions:
    if not condition.ok:
        print(f"  {condition.name}: {condition.evidence}")
