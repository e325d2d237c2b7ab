"""Tokens come back under any frequencies, and cost what the model says where contexts know no better."""

import hashlib

import numpy as np

from codec.cm.tokens import decode_token, encode_tokens, new_tokens, room
from codec.cm.vocabulary import sort
from codec.entropy import range_coder

TOKENS = [b"", b"", b"", b"a", b"a", b"ab", b"abc", b"b", b"th", b"the", b" the", b" then", b"then", b"\xff", b"\x00"]
TOKENS += [bytes([n]) for n in range(256)] + [b"abcdefghijklmnopqrstuvwxyz", b"a"]
TOTAL = 1 << 24


def rows_of(random, count, likely=None):
    """Cumulative frequencies int64 [count, V + 1]; of `likely` tokens [count], each has a half of all."""
    size = len(TOKENS)
    shares = random.dirichlet(np.full(size, 0.05), count)
    if likely is not None:
        shares = shares / 2
        shares[np.arange(count), likely] += 0.5
    whole = 1 + np.floor(shares * (TOTAL - size)).astype(np.int64)
    whole[:, 0] += TOTAL - whole.sum(1)
    return np.concatenate((np.zeros((count, 1), np.int64), whole.cumsum(1)), axis=1)


def encode(rows, tokens):
    v, s, coder = sort(TOKENS), new_tokens(1000), range_coder.new_encoder()
    out = np.zeros(len(tokens) * room(v) + 64, np.uint8)
    encode_tokens(s, v, coder, out, rows, tokens, np.zeros(len(TOKENS) + 1, np.int64))
    return out[: range_coder.finish(coder, out)]


def decode(code, rows):
    v, s, coder = sort(TOKENS), new_tokens(1000), np.zeros(3, np.uint64)
    range_coder.start_decoder(coder, code)
    sums = np.zeros(len(TOKENS) + 1, np.int64)
    found = [decode_token(s, v, coder, code, row, sums) for row in rows]
    return found, range_coder.ended(coder, len(code))


def test_order():
    v = sort(TOKENS)
    assert [TOKENS[n] for n in v.tokens] == sorted(TOKENS)
    assert v.tokens[v.ranks].tolist() == list(range(len(TOKENS)))
    assert v.text.tobytes() == b"".join(sorted(TOKENS))


def test_all_tokens_come_back():
    random = np.random.default_rng(5)
    tokens = np.concatenate((np.arange(len(TOKENS)), random.integers(0, len(TOKENS), 400)))
    rows = rows_of(random, len(tokens))
    code = encode(rows, tokens)
    assert decode(code, rows) == (tokens.tolist(), True)
    assert hashlib.sha256(code.tobytes()).hexdigest()[:16] == "4f54df7feb65580f"


def test_cost_is_near_the_models():
    random = np.random.default_rng(6)
    tokens = random.integers(0, len(TOKENS), 1500)
    rows = rows_of(random, len(tokens), tokens)
    ideal = -np.log2((rows[np.arange(1500), tokens + 1] - rows[np.arange(1500), tokens]) / TOTAL).sum() / 8
    assert len(encode(rows, tokens)) < 1.25 * ideal + 20


def test_what_the_text_has_had_costs_less_than_the_model_says():
    random = np.random.default_rng(7)
    tokens = np.tile(random.integers(3, len(TOKENS), 60), 20)
    rows = np.tile(rows_of(random, 1), (len(tokens), 1))
    ideal = -np.log2((rows[0, tokens + 1] - rows[0, tokens]) / TOTAL).sum() / 8
    assert len(encode(rows, tokens)) < ideal / 5


def test_any_bytes_decode_to_tokens():
    random = np.random.default_rng(8)
    rows = rows_of(random, 300)
    for size in (0, 5, 200):
        found, _ = decode(random.integers(0, 256, size).astype(np.uint8), rows)
        assert all(0 <= token < len(TOKENS) for token in found)
