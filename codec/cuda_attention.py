"""Exact attention on a GPU: scores and sums of values on tensor cores, weights from a table of powers of two.

The weight of a key is an integer that depends on the greatest score of the row, so keys are visited twice: once for
the greatest, once for the sums. Queries, keys and values are two limbs each, weights (up to 2^20) three.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from codec import tables
from codec.cuda_rows import launch, low_limb, round_even
from codec.exact import SOFTMAX_BITS

POSITIONS = 64
"""Keys that are visited at once: sequences and caches are padded to multiples of it."""

LOWEST = tl.constexpr(-(1 << 30))
"""Below every level of a score."""

_LEVEL_BITS = tl.constexpr(tables.LEVELS_PER_BIT.bit_length() - 1)
_LEVEL_MASK = tl.constexpr(tables.LEVELS_PER_BIT - 1)
_SHIFT = tl.constexpr(tables.FRACTION_BITS - SOFTMAX_BITS)
_OCTAVES = tl.constexpr(62 - _SHIFT)


@triton.jit
def exp2(below, fractions, SHIFT: tl.constexpr, OCTAVES: tl.constexpr):
    """`codec.tables.exp2_table` at int32 `below` >= 0, int64; `fractions` is `codec.tables.octave`."""
    octave = below >> _LEVEL_BITS
    fraction = tl.load(fractions + (below & _LEVEL_MASK))
    shift = (tl.minimum(octave, OCTAVES) + SHIFT).to(tl.int64)
    one = tl.full(below.shape, 1, tl.int64)
    return tl.where(octave < OCTAVES, (fraction + (one << (shift - 1))) >> shift, 0)


@triton.jit
def _levels(q_low, q_high, keys, limb_stride, scale):
    """Levels of the scores of queries int8 [M, D] and keys [D, N] at pointers: int32 [M, N]."""
    low, high = tl.load(keys), tl.load(keys + limb_stride)
    middle = tl.dot(q_high, low, tl.dot(q_low, high, out_dtype=tl.int32), out_dtype=tl.int32)
    score = tl.dot(q_low, low, out_dtype=tl.int32) + (middle << 8)
    score += tl.dot(q_high, high, out_dtype=tl.int32) << 16
    return round_even(score.to(tl.float64) * scale[:, None]).to(tl.int32)


@triton.jit
def _add_values(weights, low, high, sum0, sum1, sum2, sum3):
    """Add weights [M, N] times the limbs of values [N, D] to sums by power of 256."""
    w0 = low_limb(weights)
    rest = (weights - w0) >> 8
    w1 = low_limb(rest)
    w2 = ((rest - w1) >> 8).to(tl.int8)
    w0, w1 = w0.to(tl.int8), w1.to(tl.int8)
    sum0 = tl.dot(w0, low, sum0, out_dtype=tl.int32)
    sum1 = tl.dot(w1, low, tl.dot(w0, high, sum1, out_dtype=tl.int32), out_dtype=tl.int32)
    sum2 = tl.dot(w2, low, tl.dot(w1, high, sum2, out_dtype=tl.int32), out_dtype=tl.int32)
    sum3 = tl.dot(w2, high, sum3, out_dtype=tl.int32)
    return sum0, sum1, sum2, sum3


@triton.jit
def _mean(sum0, sum1, sum2, sum3, total):
    """The sums over the weights' total int64 [M], float64 [M, D]."""
    whole = sum0.to(tl.int64) + (sum1.to(tl.int64) << 8) + (sum2.to(tl.int64) << 16) + (sum3.to(tl.int64) << 24)
    return whole.to(tl.float64) / total.to(tl.float64)[:, None]


@triton.jit
def _rows_kernel(
    q, k, v, scales, fractions, out, length, q_limb, kv_limb,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A tile of queries of whole sequences: GROUP heads (padded to GROUPS) of QUERIES positions.

    q: int8 [2, B, length, heads, D]. k: [2, B, kv_heads, length, D]. v: [2, B, kv_heads, D, length].
    out: float64 [B, length, heads, HEAD_DIM].
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    pair = tl.program_id(1).to(tl.int64)  # sequence and kv head
    row = tl.arange(0, GROUPS * QUERIES)
    group, position = row // QUERIES, tile * QUERIES + row % QUERIES
    d, key = tl.arange(0, D), tl.arange(0, KEYS)
    valid = group < GROUP
    head = (pair % KV_HEADS) * GROUP + group
    query = (pair // KV_HEADS * length + position) * (KV_HEADS * GROUP) + head
    at = query[:, None] * D + d[None, :]
    q_low = tl.load(q + at, mask=valid[:, None], other=0)
    q_high = tl.load(q + q_limb + at, mask=valid[:, None], other=0)
    scale = tl.load(scales + head, mask=valid, other=0.0)
    keys = k + pair * length * D + key[None, :] * D + d[:, None]
    values = v + pair * length * D + d[None, :] * length + key[:, None]
    end = (tile + 1) * QUERIES
    top = tl.full((GROUPS * QUERIES,), LOWEST, tl.int32)
    for start in range(0, end, KEYS):
        level = _levels(q_low, q_high, keys + start * D, kv_limb, scale)
        level = tl.where((start + key)[None, :] <= position[:, None], level, LOWEST)
        top = tl.maximum(top, tl.max(level, 1))
    total = tl.zeros((GROUPS * QUERIES,), tl.int64)
    sum0 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum1 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum2 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    sum3 = tl.zeros((GROUPS * QUERIES, D), tl.int32)
    for start in tl.range(0, end, KEYS, num_stages=1):  # a pipeline would not know what to do with the table's loads
        low, high = tl.load(values + start), tl.load(values + kv_limb + start)  # early: they take long
        level = _levels(q_low, q_high, keys + start * D, kv_limb, scale)
        seen = (start + key)[None, :] <= position[:, None]
        weights = exp2(tl.where(seen, top[:, None] - level, 0), fractions, _SHIFT, _OCTAVES)
        weights = tl.where(seen, weights, 0)
        total += tl.sum(weights, 1)
        sum0, sum1, sum2, sum3 = _add_values(weights.to(tl.int32), low, high, sum0, sum1, sum2, sum3)
    mean = _mean(sum0, sum1, sum2, sum3, total)
    tl.store(out + query[:, None] * HEAD_DIM + d[None, :], mean, mask=valid[:, None] & (d[None, :] < HEAD_DIM))


@triton.jit
def _step_kernel(
    q, k, v, positions, slots, scales, fractions, scratch, out, window, q_limb, kv_limb,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """The queries of one token of a lane that share keys.

    q: int8 [2, lanes, heads, D]. k: [2, slots, kv_heads, window, D]. v: [2, slots, kv_heads, D, window].
    scratch: int32 [lanes, kv_heads, GROUP, window]. out: float64 [lanes, heads, HEAD_DIM].
    """
    lane, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, d, key = tl.arange(0, GROUPS), tl.arange(0, D), tl.arange(0, KEYS)
    valid = group < GROUP
    head = lane * (KV_HEADS * GROUP) + kv * GROUP + group
    at = head[:, None] * D + d[None, :]
    q_low = tl.load(q + at, mask=valid[:, None], other=0)
    q_high = tl.load(q + q_limb + at, mask=valid[:, None], other=0)
    scale = tl.load(scales + kv * GROUP + group, mask=valid, other=0.0)
    base = (tl.load(slots + lane) * KV_HEADS + kv) * window * D
    position = tl.load(positions + lane)
    keys = k + base + key[None, :] * D + d[:, None]
    values = v + base + d[None, :] * window + key[:, None]
    levels = scratch + ((lane * KV_HEADS + kv) * GROUP + group[:, None]) * window + key[None, :]
    top = tl.full((GROUPS,), LOWEST, tl.int32)
    for start in range(0, position + 1, KEYS):
        level = _levels(q_low, q_high, keys + start * D, kv_limb, scale)
        level = tl.where((start + key)[None, :] <= position, level, LOWEST)
        tl.store(levels + start, level, mask=valid[:, None])
        top = tl.maximum(top, tl.max(level, 1))
    tl.debug_barrier()
    total = tl.zeros((GROUPS,), tl.int64)
    sum0 = tl.zeros((GROUPS, D), tl.int32)
    sum1 = tl.zeros((GROUPS, D), tl.int32)
    sum2 = tl.zeros((GROUPS, D), tl.int32)
    sum3 = tl.zeros((GROUPS, D), tl.int32)
    for start in tl.range(0, position + 1, KEYS, num_stages=1):
        low, high = tl.load(values + start), tl.load(values + kv_limb + start)
        level = tl.load(levels + start, mask=valid[:, None], other=LOWEST)
        seen = ((start + key)[None, :] <= position) & valid[:, None]
        weights = exp2(tl.where(seen, top[:, None] - level, 0), fractions, _SHIFT, _OCTAVES)
        weights = tl.where(seen, weights, 0)
        total += tl.sum(weights, 1)
        sum0, sum1, sum2, sum3 = _add_values(weights.to(tl.int32), low, high, sum0, sum1, sum2, sum3)
    mean = _mean(sum0, sum1, sum2, sum3, tl.maximum(total, 1))
    tl.store(out + head[:, None] * HEAD_DIM + d[None, :], mean, mask=valid[:, None] & (d[None, :] < HEAD_DIM))


def attend_rows(q: Tensor, k: Tensor, v: Tensor, scales: Tensor, fractions: Tensor, head_dim: int) -> Tensor:
    """Attention of whole sequences, a multiple of 64 long.

    Args:
        q: int8 [2, B, T, heads, D]; k: int8 [2, B, kv_heads, T, D]; v: int8 [2, B, kv_heads, D, T]; D is padded.
        scales: float64 [heads], of scores.
        fractions: `codec.tables.octave` on the device.

    Returns:
        float64 [B * T, heads * head_dim].
    """
    _, batch, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    groups = triton.next_power_of_2(group)
    queries = max(16, 128 // groups) if length % 128 == 0 else max(16, 64 // groups)
    out = torch.empty(batch * length, heads * head_dim, dtype=torch.float64, device=q.device)
    launch(
        _rows_kernel, (length // queries, batch * kv_heads), q, k, v, scales, fractions, out, length, q[0].numel(),
        k[0].numel(), KV_HEADS=kv_heads, GROUP=group, GROUPS=groups, HEAD_DIM=head_dim, D=dim, QUERIES=queries,
        KEYS=POSITIONS,
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return out


def attend_step(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, slots: Tensor, scales: Tensor, fractions: Tensor, head_dim: int
) -> Tensor:
    """Attention of one token of each lane over its slot of a cache, the token's own keys and values included.

    Args:
        q: int8 [2, lanes, heads, D].
        k: int8 [2, slots, kv_heads, window, D]; v: int8 [2, slots, kv_heads, D, window], a multiple of 64.
        positions, slots: int64 [lanes].

    Returns:
        float64 [lanes, heads * head_dim].
    """
    _, lanes, heads, dim = q.shape
    _, _, kv_heads, window, _ = k.shape
    groups = max(16, triton.next_power_of_2(heads // kv_heads))
    scratch = torch.empty(lanes, kv_heads, heads // kv_heads, window, dtype=torch.int32, device=q.device)
    out = torch.empty(lanes, heads * head_dim, dtype=torch.float64, device=q.device)
    launch(
        _step_kernel, (lanes, kv_heads), q, k, v, positions, slots, scales, fractions, scratch, out, window,
        q[0].numel(), k[0].numel(), KV_HEADS=kv_heads, GROUP=heads // kv_heads, GROUPS=groups, HEAD_DIM=head_dim,
        D=dim, KEYS=POSITIONS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
