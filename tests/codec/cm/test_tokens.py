"""Tokens come back under any frequencies, and cost what the model says where contexts know no better."""

import hashlib

import numpy as np

from codec.cm.tokens import cuts, decode_token, encode_tokens, new_tokens, room
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


def sums_of(rows):
    """Sums of the same frequencies in the order of bytes."""
    found = np.zeros_like(rows)
    found[:, 1:] = np.diff(rows)[:, sort(TOKENS).tokens].cumsum(1)
    return found


def encode(rows, tokens):
    v, s, coder = sort(TOKENS), new_tokens(1000), range_coder.new_encoder()
    out = np.zeros(len(tokens) * room(v) + 64, np.uint8)
    encode_tokens(s, v, coder, out, sums_of(rows), v.ranks[tokens].astype(np.int64))
    return out[: range_coder.finish(coder, out)]


def decode(code, rows):
    v, s, coder = sort(TOKENS), new_tokens(1000), np.zeros(3, np.uint64)
    range_coder.start_decoder(coder, code)
    found = [int(v.tokens[decode_token(s, v, coder, code, sums)]) for sums in sums_of(rows)]
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


def textbook_cuts(ordered, rank):
    """Where the intervals of tokens begin and end between which a token's decisions divide, by filtering the tokens."""
    alive, token, found = list(range(len(ordered))), ordered[rank], [0, len(ordered)]
    for depth in range(len(token) + 1):
        ended = [n for n in alive if len(ordered[n]) == depth]
        if ended and len(ended) < len(alive):
            found.append(ended[-1] + 1)
        if rank in ended:
            alive = ended
            break
        alive = [n for n in alive if n not in ended]
        for bit in range(7, -1, -1):
            zeros, ones = ([n for n in alive if ordered[n][depth] >> bit & 1 == k] for k in (0, 1))
            found += [ones[0]] if zeros and ones else []
            alive = ones if token[depth] >> bit & 1 else zeros
    while len(alive) > 1:
        middle = (alive[0] + alive[-1] + 1) // 2
        found.append(middle)
        alive = [n for n in alive if (n >= middle) == (rank >= middle)]
    return found


def test_cuts_are_where_tokens_divide():
    found, ordered = cuts(sort(TOKENS)), sorted(TOKENS)
    for rank in range(len(TOKENS)):
        own = found.ranks[found.begins[rank] : found.begins[rank + 1]].tolist()
        assert own == textbook_cuts(ordered, rank)
    assert found.begins[-1] == len(found.ranks)


def test_an_encoder_needs_the_sums_at_cuts_only():
    random = np.random.default_rng(9)
    tokens = random.integers(0, len(TOKENS), 200)
    rows = rows_of(random, len(tokens))
    v, found, poisoned = sort(TOKENS), cuts(sort(TOKENS)), np.full((200, len(TOKENS) + 1), -1)
    for sums, known, token in zip(sums_of(rows), poisoned, tokens, strict=True):
        rank = v.ranks[token]
        own = found.ranks[found.begins[rank] : found.begins[rank + 1]]
        known[own] = sums[own]
    s, coder, out = new_tokens(1000), range_coder.new_encoder(), np.zeros(200 * room(v) + 64, np.uint8)
    encode_tokens(s, v, coder, out, poisoned, v.ranks[tokens].astype(np.int64))
    assert out[: range_coder.finish(coder, out)].tobytes() == encode(rows, tokens).tobytes()


def test_a_vocabulary_of_152_000_tokens():
    """Frequencies sum to 2^27 and more; the tokens are words of one to eight letters, with some controls and twins."""
    random = np.random.default_rng(10)
    words = {bytes(random.integers(97, 123, random.integers(1, 9)).astype(np.uint8)) for _ in range(200_000)}
    many = [*sorted(words)[:151_700], *[b""] * 290, b"the", b"the"]
    v, count = sort(many), 40
    sums = np.zeros((count, len(many) + 1), np.int64)
    sums[:, 1:] = (1 + (1 << 27) * random.dirichlet(np.full(len(many), 0.01), count)).astype(np.int64).cumsum(1)
    ranks = random.integers(0, len(many), count)
    s, coder, out = new_tokens(1000), range_coder.new_encoder(), np.zeros(count * room(v) + 64, np.uint8)
    encode_tokens(s, v, coder, out, sums, ranks)
    code = out[: range_coder.finish(coder, out)]
    s, coder = new_tokens(1000), np.zeros(3, np.uint64)
    range_coder.start_decoder(coder, code)
    assert [decode_token(s, v, coder, code, row) for row in sums] == ranks.tolist()
    assert len(cuts(v).ranks) < 40 * len(many)
