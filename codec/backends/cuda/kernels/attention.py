"""Compute exact attention on a GPU: scores and sums of values on tensor cores, weights by a polynomial in float64.

The weight of a key is an integer that depends on the greatest score of the row. A kernel therefore visits keys twice:
once for the greatest score, once for the sums. Queries, keys and values have two limbs each, weights (up to 2^20)
three.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from codec.backends.cuda.kernels.elementwise import TWO_52, launch, round_int, to_double
from codec.numerics import tables
from codec.numerics.widths import LARGEST_SCORE, SOFTMAX_BITS

POSITIONS = 64
"""Keys that a tile of queries visits at once. Sequences are padded to multiples of this number.

Tiles of 32 to 128 rows by 64 keys, 4 to 16 warps and 1 to 3 stages were measured on an H200, in sequences of 256, 768
and 2,048 tokens. 128 by 64, 8 warps and 3 stages were within 2 % of the fastest; 2 stages take 1.05 to 1.11 times as
long, 16 warps two to three times.
"""

VALUE_PLACES = 64
"""Positions of a block of values: the layout is [positions / 64, D, 64].

Measured for blocks of 16, 32 and 64 (H200, 2,048 decoding slots at a mean of 589 positions, ms a step): attention
takes 6.66, 5.46 and 5.13, writing the values 0.18, 0.33 and 0.46, a whole step 9.19, 8.12 and 7.91. Rows of queries
take the same time with all three. With blocks of 128, writing takes 0.95 (H100).
"""

CACHE_POSITIONS = 128
"""Keys that a decoding step visits at once: the positions of a page of the KV cache.

32 to 128 keys, 1 to 4 warps and 2 to 4 stages were measured on an H200. 128 keys, 4 warps and 3 stages were fastest
from 700 positions on; at 1,500 positions a step takes 1.14 times as long as reading the keys and values. If a slot has
only a part of a tile, the rest of the tile is not loaded, which saves 8 % at mixed positions around 600. The page table
costs 1 % over contiguous keys (H100).
"""

LOWEST = tl.constexpr(-(1 << 30))
"""A number below every score."""

_LARGEST = tl.constexpr(LARGEST_SCORE)
_SERIES = tl.constexpr(tables.exp2_series(SOFTMAX_BITS)[::-1])
_TERMS = tl.constexpr(len(tables.exp2_series(SOFTMAX_BITS)))
_MIDDLE = tl.constexpr(float((1 << 52) + tables.LEVELS_PER_BIT // 2))

_LEVEL_BITS = tl.constexpr(tables.LEVELS_PER_BIT.bit_length() - 1)
_LEVEL_MASK = tl.constexpr(tables.LEVELS_PER_BIT - 1)


@triton.jit
def _scores(q_low, q_high, low, high):
    """Multiply queries int8 [M, D] and keys [D, N], two limbs each: int32 [M, N]."""
    score = tl.dot(q_high, high, out_dtype=tl.int32) << 8
    score = tl.dot(q_high, low, tl.dot(q_low, high, score, out_dtype=tl.int32), out_dtype=tl.int32)
    return tl.dot(q_low, low, score << 8, out_dtype=tl.int32)


@triton.jit
def _level(score, scale, PER_ROW: tl.constexpr):
    """Compute the level of int32 scores: score * scale, rounded to the nearest integer.

    Levels saturate where rows have their own scales.
    """
    level = to_double(score) * scale
    if PER_ROW:
        level = tl.minimum(tl.maximum(level, -_LARGEST), _LARGEST)
    return round_int(level)


@triton.jit
def _weights(below):
    """Compute entry `below` >= 0 of `codec.numerics.tables.exp2_table` of SOFTMAX_BITS by `exp2_series`, int32.

    A look-up for each key would take longer than all products with the key.
    """
    bits = (below & _LEVEL_MASK).to(tl.int64) | TWO_52
    x = bits.to(tl.float64, bitcast=True) - _MIDDLE
    power = tl.full(below.shape, _SERIES[0], tl.float64)
    for i in tl.static_range(1, _TERMS):
        power = tl.fma(power, x, tl.full(below.shape, _SERIES[i], tl.float64))
    octave = tl.minimum(below >> _LEVEL_BITS, 63).to(tl.int64)
    power = (power.to(tl.int64, bitcast=True) - (octave << 52)).to(tl.float64, bitcast=True)
    return round_int(power)


@triton.jit
def _add_values(weights, low, high, sum0, sum1, sum2, sum3):
    """Add weights [M, N] times the limbs of values [N, D] to the sums, one sum for each power of 256."""
    w0 = weights.to(tl.int8)  # signed: the next limb makes up for the sign
    w1 = ((weights + 0x80) >> 8).to(tl.int8)
    w2 = ((weights + 0x8080) >> 16).to(tl.int8)
    sum0 = tl.dot(w0, low, sum0, out_dtype=tl.int32)
    sum1 = tl.dot(w1, low, tl.dot(w0, high, sum1, out_dtype=tl.int32), out_dtype=tl.int32)
    sum2 = tl.dot(w2, low, tl.dot(w1, high, sum2, out_dtype=tl.int32), out_dtype=tl.int32)
    sum3 = tl.dot(w2, high, sum3, out_dtype=tl.int32)
    return sum0, sum1, sum2, sum3


@triton.jit
def _mean(sum0, sum1, sum2, sum3, total):
    """Join the sums and divide by the weights' total int64 [M]: float64 [M, D]."""
    whole = sum0.to(tl.int64) + (sum1.to(tl.int64) << 8) + (sum2.to(tl.int64) << 16) + (sum3.to(tl.int64) << 24)
    return whole.to(tl.float64) / total.to(tl.float64)[:, None]


@triton.jit
def _sees(query, key, window):
    """Compare positions of queries [M] and keys [N] of a sequence: true [M, N] where the query sees the key."""
    return (key[None, :] <= query[:, None]) & (key[None, :] > query[:, None] - window)


@triton.jit
def _part(part: tl.constexpr, first, full, partial, end):
    """Return the first and the last key of one of the three parts of the loops of `_rows_kernel`."""
    if part == 0:
        return first, full
    elif part == 1:
        return full, partial
    else:
        return partial, end


@triton.jit
def _rows_kernel(
    q, k, v, scales, out, length, begin, since, window, places, q_limb, kv_limb,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, TOGETHER: tl.constexpr, PER_ROW: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Compute attention for a tile of queries: GROUP heads (padded to GROUPS) of QUERIES positions.

    The sequences begin at position `begin`. A query sees the last `window` positions, but none before `since`, a
    multiple of KEYS, so a sum has at most `window` terms. PACKED: `since` are numbers int64 [length / KEYS], for each
    KEYS queries their own. Keys and values are rings: position p is at index p % places. In both passes, tiles of keys
    that all queries see need no mask.

    q: int8 [2, B, length, heads, D]. k: int8 [2, B, kv_heads, places, D]. v: int8 [2, B, kv_heads, places / TOGETHER,
    D, TOGETHER]. out: float64 [B, length, heads, HEAD_DIM].
    """
    tile = tl.program_id(0)
    if PACKED:
        since = tl.load(since + tile * QUERIES // KEYS).to(tl.int32)
    else:
        tile = tl.num_programs(0) - 1 - tile  # the tile with the most keys first
    pair = tl.program_id(1).to(tl.int64)  # sequence and kv head
    row = tl.arange(0, GROUPS * QUERIES)
    group, own = row // QUERIES, tile * QUERIES + row % QUERIES
    position = begin + own
    d, key = tl.arange(0, D), tl.arange(0, KEYS)
    valid = group < GROUP
    head = (pair % KV_HEADS) * GROUP + group
    query = (pair // KV_HEADS * length + own) * (KV_HEADS * GROUP) + head
    at = query[:, None] * D + d[None, :]
    q_low = tl.load(q + at, mask=valid[:, None], other=0)
    q_high = tl.load(q + q_limb + at, mask=valid[:, None], other=0)
    scale = tl.load(scales + (query if PER_ROW else head), mask=valid, other=0.0)
    keys = k + pair * places * D + key[None, :] * D + d[:, None]
    values = v + pair * places * D + d[None, :] * TOGETHER
    values += (key // TOGETHER * (TOGETHER * D) + key % TOGETHER)[:, None]
    end = begin + (tile + 1) * QUERIES
    # The queries are at positions end - QUERIES to end - 1. All queries see the tiles of keys from `full` to `partial`;
    # a small window has no such tiles.
    first = tl.maximum(end - QUERIES - window + 1, since) // KEYS * KEYS
    partial = tl.maximum((end - QUERIES + 1) // KEYS * KEYS, first)
    full = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(end - window, 0), KEYS) * KEYS, first), partial)
    greatest = tl.full((GROUPS * QUERIES,), LOWEST, tl.int32)
    least = tl.full((GROUPS * QUERIES,), -LOWEST, tl.int32)
    for part in tl.static_range(3):
        from_, to = _part(part, first, full, partial, end)
        for start in range(from_, to, KEYS):
            place = keys + start % places * D
            score = _scores(q_low, q_high, tl.load(place), tl.load(place + kv_limb))
            high, low = score, score
            if part != 1:
                seen = _sees(position, start + key, window)
                high, low = tl.where(seen, score, LOWEST), tl.where(seen, score, -LOWEST)
            greatest = tl.maximum(greatest, tl.max(high, 1))
            least = tl.minimum(least, tl.min(low, 1))
    # Levels rise or fall with scores: the greatest level belongs to the greatest or to the least score.
    top = tl.maximum(_level(greatest, scale, PER_ROW), _level(least, scale, PER_ROW))
    total = tl.zeros((GROUPS * QUERIES,), tl.int64)
    sum0 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum1 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum2 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum3 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    for part in tl.static_range(3):
        from_, to = _part(part, first, full, partial, end)
        for start in range(from_, to, KEYS):
            place, turn = keys + start % places * D, values + start % places * D
            score = _scores(q_low, q_high, tl.load(place), tl.load(place + kv_limb))
            below = top[:, None] - _level(score, scale[:, None], PER_ROW)
            if part == 1:
                weights = _weights(below)
            else:
                seen = _sees(position, start + key, window)
                weights = tl.where(seen, _weights(below), 0)
            total += tl.sum(weights, 1)
            low, high = tl.load(turn), tl.load(turn + kv_limb)
            sum0, sum1, sum2, sum3 = _add_values(weights, low, high, sum0, sum1, sum2, sum3)
    mean = _mean(sum0, sum1, sum2, sum3, total)
    tl.store(out + query[:, None] * HEAD_DIM + d[None, :], mean, mask=valid[:, None] & (d[None, :] < HEAD_DIM))


@triton.jit
def _step_kernel(
    q, k, v, positions, table, order, scales, scratch, out, pages, q_limb, kv_limb,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, LIMBS: tl.constexpr, HEAD_DIM: tl.constexpr,
    D: tl.constexpr, KEYS: tl.constexpr, TOGETHER: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Compute attention for the queries, of one token of a decoding slot, that share keys.

    The queries are few, and a product on tensor cores has at least 16 rows. The rows of the first product are therefore
    the limbs of the queries. The rows of the second product are the limbs of the weights, of 7 bits because weights
    have no sign. All work after a product is for GROUP rows only.

    q: int8 [2, slots, heads, D]. k: int8 [2, all pages, kv_heads, KEYS, D]. v: int8 [2, all pages, kv_heads, KEYS /
    TOGETHER, D, TOGETHER]. table: int64 [slots, pages]. scratch: int32 [slots, kv_heads, GROUPS, pages * KEYS]. out:
    float64 [slots, heads, HEAD_DIM].
    """
    lane, kv = tl.load(order + tl.program_id(0) // KV_HEADS), tl.program_id(0) % KV_HEADS
    row, d, key = tl.arange(0, LIMBS * GROUPS), tl.arange(0, D), tl.arange(0, KEYS)
    limb, member = row // GROUPS, row % GROUPS
    head = lane * (KV_HEADS * GROUP) + kv * GROUP
    at = limb[:, None] * q_limb + (head + member)[:, None] * D + d[None, :]
    queries = tl.load(q + at, mask=((limb < 2) & (member < GROUP))[:, None], other=0)
    position = tl.load(positions + lane)
    keys = k + kv * (KEYS * D) + key[None, :] * D + d[:, None]
    group = tl.arange(0, GROUPS)
    scores = scratch + ((lane * KV_HEADS + kv) * GROUPS + group[:, None]) * (pages * KEYS) + key[None, :]
    greatest = tl.full((GROUPS, KEYS), LOWEST, tl.int32)
    least = tl.full((GROUPS, KEYS), -LOWEST, tl.int32)
    for start in range(0, position + 1, KEYS):
        seen = (start + key <= position)[None, :]
        page = tl.load(table + lane * pages + start // KEYS) * (KV_HEADS * KEYS * D)
        low = tl.load(keys + page, mask=seen, other=0)
        high = tl.load(keys + page + kv_limb, mask=seen, other=0)
        part = tl.dot(queries, low, out_dtype=tl.int32) + (tl.dot(queries, high, out_dtype=tl.int32) << 8)
        part = part << ((limb & 1) << 3)[:, None]  # limbs from the third on are 0
        score = tl.sum(tl.reshape(part, (LIMBS, GROUPS, KEYS)), 0)
        tl.store(scores + start, score)
        greatest = tl.maximum(greatest, tl.where(seen, score, LOWEST))
        least = tl.minimum(least, tl.where(seen, score, -LOWEST))
    tl.debug_barrier()
    scale = tl.load(scales + (head if PER_ROW else kv * GROUP) + group, mask=group < GROUP, other=0.0)
    # Levels rise or fall with scores: the greatest level belongs to the greatest or to the least score.
    top = tl.maximum(_level(tl.max(greatest, 1), scale, PER_ROW), _level(tl.min(least, 1), scale, PER_ROW))
    values = v + kv * (KEYS * D) + d[None, :] * TOGETHER
    values += (key // TOGETHER * (TOGETHER * D) + key % TOGETHER)[:, None]
    total = tl.zeros((GROUPS, KEYS), tl.int32)
    sum_low = tl.zeros((LIMBS * GROUPS, D), tl.int32)
    sum_high = tl.zeros((LIMBS * GROUPS, D), tl.int32)
    for start in range(0, position + 1, KEYS):
        there = (start + key // 16 * 16 <= position)[:, None]  # loads of 16 bytes; weights beyond the position are 0
        page = tl.load(table + lane * pages + start // KEYS) * (KV_HEADS * KEYS * D)
        low = tl.load(values + page, mask=there, other=0)
        high = tl.load(values + page + kv_limb, mask=there, other=0)
        below = top[:, None] - _level(tl.load(scores + start), scale[:, None], PER_ROW)
        seen = (start + key <= position)[None, :]
        weights = tl.where(seen, _weights(below), 0)
        total += weights
        shift = tl.minimum(7 * tl.arange(0, LIMBS), 28)
        limbs = (weights[None, :, :] >> shift[:, None, None]) & 127
        limbs = tl.reshape(limbs, (LIMBS * GROUPS, KEYS)).to(tl.int8)
        sum_low = tl.dot(limbs, low, sum_low, out_dtype=tl.int32)
        sum_high = tl.dot(limbs, high, sum_high, out_dtype=tl.int32)
    whole = (sum_low.to(tl.int64) + (sum_high.to(tl.int64) << 8)) << tl.minimum(7 * limb, 28).to(tl.int64)[:, None]
    whole = tl.sum(tl.reshape(whole, (LIMBS, GROUPS, D)), 0)
    mean = whole.to(tl.float64) / tl.sum(total.to(tl.int64), 1).to(tl.float64)[:, None]
    target = out + (head + group)[:, None] * HEAD_DIM + d[None, :]
    tl.store(target, mean, mask=(group < GROUP)[:, None] & (d < HEAD_DIM)[None, :])


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, begin: int, window: int, scales: Tensor, head_dim: int, since: int | Tensor = 0
) -> Tensor:
    """Compute attention of whole sequences or of chunks.

    Args:
        q: int8 [2, B, T, heads, D], at positions begin to begin + T - 1. T is a multiple of 64; D is padded.
        k: int8 [2, B, kv_heads, S, D], a ring: position p is at index p % S. S is a multiple of 64, and at least T plus
            the positions that the first query sees.
        v: int8 [2, B, kv_heads, S / 64, D, 64], a ring like `k`.
        begin: the position of the first query, a multiple of 64.
        window: positions that a query sees, its own included.
        scales: float64 [heads], from integer scores to levels, or [B * T, heads].
        head_dim: the width of a head without padding.
        since: a multiple of 64; no query sees an earlier position. Or a number for each 64 queries, int64 [T / 64].

    Returns:
        float64 [B * T, heads * head_dim].
    """
    _, batch, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    groups = triton.next_power_of_2(group)
    queries = max(16, 128 // groups) if length % 128 == 0 else max(16, 64 // groups)
    packed = isinstance(since, Tensor)
    if packed:
        queries = min(queries, POSITIONS)
    out = torch.empty(batch * length, heads * head_dim, dtype=torch.float64, device=q.device)
    launch(
        _rows_kernel, (length // queries, batch * kv_heads), q, k, v, scales, out, length, begin, since, window,
        k.shape[3], q[0].numel(), k.stride(0), KV_HEADS=kv_heads, GROUP=group, GROUPS=groups, HEAD_DIM=head_dim,
        D=dim, QUERIES=queries, KEYS=POSITIONS, TOGETHER=VALUE_PLACES, PER_ROW=scales.dim() > 1,
        PACKED=packed, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def attend_step(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, table: Tensor, order: Tensor, scales: Tensor, head_dim: int
) -> Tensor:
    """Compute attention of one token of each decoding slot over the slot's pages of a KV cache.

    The pages already hold the token's own key and value.

    Args:
        q: int8 [2, slots, heads, D].
        k: int8 [2, pages, kv_heads, S, D]. S is a power of two and at least 64.
        v: int8 [2, pages, kv_heads, S / 64, D, 64].
        positions: int64 [slots]. A slot sees the keys 0 to `positions` of its pages.
        table: int64 [slots, P], the page table: the pages of each slot, in order.
        order: int64 [slots], the order of computing the slots: those with the most keys first. Otherwise a few long
            slots would run last while most of the GPU is idle.
        scales: float64 [heads], from integer scores to levels.
        head_dim: the width of a head without padding.

    Returns:
        float64 [slots, heads * head_dim].
    """
    _, lanes, heads, dim = q.shape
    _, _, kv_heads, places, _ = k.shape
    pages = table.shape[1]
    group = heads // kv_heads
    groups = triton.next_power_of_2(group)
    scratch = torch.empty(lanes, kv_heads, groups, pages * places, dtype=torch.int32, device=q.device)
    out = torch.empty(lanes, heads * head_dim, dtype=torch.float64, device=q.device)
    launch(
        _step_kernel, (lanes * kv_heads,), q, k, v, positions, table, order, scales, scratch, out, pages,
        q[0].numel(), k[0].numel(), KV_HEADS=kv_heads, GROUP=group, GROUPS=groups, LIMBS=max(4, 16 // groups),
        HEAD_DIM=head_dim, D=dim, KEYS=places, TOGETHER=VALUE_PLACES, PER_ROW=scales.dim() > 1,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
