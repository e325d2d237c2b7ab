"""The element-wise steps of `codec.exact.families.transformer` on a GPU, between matrix products.

They follow the rules of `codec.backends.cuda.kernels.elementwise`: float64, operation by operation as the reference
does.
"""

import triton
import triton.language as tl

from codec.backends.cuda.kernels.elementwise import (
    exponent_of,
    magnitude,
    power_of_two,
    reciprocal_sqrt,
    round_even,
    round_int,
    snap_fixed,
    snap_scales,
    store_limbs,
    to_double,
)
from codec.exact.families.weights import GELU_CUBE, GELU_LINE, NORM_BITS
from codec.exact.recall import HIDDEN_FRACTION
from codec.numerics import tables

_WIDE = tl.constexpr(NORM_BITS - 1)
_HIDDEN_SCALE = tl.constexpr(float(1 << HIDDEN_FRACTION))
_SIGMOID_GRID = tl.constexpr(float(tables.SIGMOID_GRID))
_SIGMOID_LAST = tl.constexpr(float(tables.SIGMOID_LENGTH - 1))
_CUBE = tl.constexpr(GELU_CUBE)
_LINE = tl.constexpr(GELU_LINE)


@triton.jit
def _scales(largest, BITS: tl.constexpr):
    """Compute `snap_scales` to integers of at most 2^BITS."""
    e = exponent_of(largest)
    return power_of_two(-e + BITS), power_of_two(e - BITS)


@triton.jit
def stream_kernel(
    x_in, x_out, y, y_rows, y_bias, y_step, y_stride, norm, columns, operands, steps, count, dim, width,
    UPDATE: tl.constexpr, BIAS: tl.constexpr, LAYER: tl.constexpr, MATRICES: tl.constexpr, BARE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a product to the residual stream of one token, and normalise the stream into operands.

    Where BARE, one more operand has no column steps: the hidden state on the grid of `codec.exact.recall`.

    x_in, x_out: float64 [rows, dim]. y: integers [rows, y_stride]; what is added is (y * y_rows) * y_step + y_bias.
    norm: float64 [3], 1 / dim, epsilon and dim. columns: float64 [MATRICES, dim]. operands: int8 [MATRICES + BARE, 2,
    count, width]. steps: float64 [MATRICES + BARE, count].
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < dim
    x = tl.load(x_in + row * dim + at, mask=inside, other=0.0)
    if UPDATE:
        product = to_double(tl.load(y + row * y_stride + at, mask=inside, other=0))
        product = product * tl.load(y_rows + at, mask=inside, other=0.0) * tl.load(y_step + row)
        if BIAS:
            product = product + tl.load(y_bias + at, mask=inside, other=0.0)
        x = x + product
    tl.store(x_out + row * dim + at, x, mask=inside)
    inverse, epsilon = tl.load(norm), tl.load(norm + 1)
    scale, step = _scales(tl.max(magnitude(x)), _WIDE)
    snapped = round_even(x * scale)
    if LAYER:
        centred = tl.where(inside, snapped * tl.load(norm + 2) - tl.sum(snapped), 0.0)
        scale, finer = _scales(tl.max(magnitude(centred)), _WIDE)
        snapped = round_even(centred * scale)
        step = step * finer * inverse
    mean = tl.sum(snapped * snapped) * step * step * inverse + epsilon
    step = step * reciprocal_sqrt(mean)
    for i in tl.static_range(MATRICES):
        scaled = snapped * tl.load(columns + i * dim + at, mask=inside, other=0.0)
        finer, fine_step = snap_scales(tl.max(magnitude(scaled)))
        tl.store(steps + i * count + row, step * fine_step)
        integers = round_int(round_even(scaled * finer))
        store_limbs(integers, operands + i * 2 * count * width, row * width + at, count * width, inside)
    if BARE:
        tl.store(steps + MATRICES * count + row, 1.0 / _HIDDEN_SCALE)
        integers = round_int(snap_fixed(snapped * step, _HIDDEN_SCALE))
        store_limbs(integers, operands + MATRICES * 2 * count * width, row * width + at, count * width, inside)


@triton.jit
def _heads(y, y_rows, y_bias, step, row, stride, heads, HEAD_DIM: tl.constexpr, at, valid, BIAS: tl.constexpr):
    """Add a product and its bias at `at` of each head, float64 [heads, D]."""
    offsets = heads[:, None] * HEAD_DIM + at[None, :]
    x = to_double(tl.load(y + row * stride + offsets, mask=valid, other=0))
    x = x * tl.load(y_rows + offsets, mask=valid, other=0.0) * step
    if BIAS:
        x = x + tl.load(y_bias + offsets, mask=valid, other=0.0)
    return x


@triton.jit
def heads_kernel(
    y, y_rows, y_bias, y_step, y_stride, places, slots, cos, sin, norm, gain, key_scale, scales, out, limb_stride,
    slot_stride, head_stride, place_stride, HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr, QUERY_BITS: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate the queries or keys of one token; limbs to `out` at its slot, head and place.

    QUERY_BITS: 0 for keys, which are multiplied with key_scale float64 [HEADS / GROUP, HEAD_DIM] and saturated; else
    the bits of queries, which are divided by it and snapped head by head, with the scale of their scores to `scales`
    float64 [rows, HEADS]. HALF: pairs that rotate, 0 for none. norm: float64 [3], 1 / HEAD_DIM, epsilon and the unit
    of scores. gain: float64 [HEAD_DIM], read where NORM. cos, sin: float64 [rows, HALF].
    """
    row = tl.program_id(0).to(tl.int64)
    heads, at = tl.arange(0, HEAD_BLOCK), tl.arange(0, BLOCK)
    valid = (heads[:, None] < HEADS) & (at[None, :] < HEAD_DIM)
    y_unit = tl.load(y_step + row)
    x = _heads(y, y_rows, y_bias, y_unit, row, y_stride, heads, HEAD_DIM, at, valid, BIAS)
    other = x
    partner = tl.where(at < HALF, at + HALF, at - HALF)
    if HALF > 0:
        other = _heads(y, y_rows, y_bias, y_unit, row, y_stride, heads, HEAD_DIM, partner, valid, BIAS)
    if NORM:
        scale, step = snap_scales(tl.max(magnitude(x), 1))
        snapped = round_even(x * scale[:, None])
        mean = tl.sum(snapped * snapped, 1) * step * step * tl.load(norm) + tl.load(norm + 1)
        step = (step * reciprocal_sqrt(mean))[:, None]
        x = snapped * step * tl.load(gain + at, mask=at < HEAD_DIM, other=0.0)[None, :]
        if HALF > 0:
            other = round_even(other * scale[:, None]) * step
            other = other * tl.load(gain + partner, mask=at < HEAD_DIM, other=0.0)[None, :]
    if HALF > 0:
        angle = row * HALF + tl.where(at < HALF, at, partner)
        c = tl.load(cos + angle, mask=at < HEAD_DIM, other=1.0)[None, :]
        s = tl.load(sin + angle, mask=at < HEAD_DIM, other=0.0)[None, :]
        x = tl.where((at < HALF)[None, :], x * c + other * s, x * c - other * s)
    unit = tl.load(key_scale + (heads // GROUP)[:, None] * HEAD_DIM + at[None, :], mask=valid, other=1.0)
    if QUERY_BITS > 0:
        x = tl.where(valid, x / unit, 0.0)
        scale, step = _scales(tl.max(magnitude(x), 1), QUERY_BITS - 1)
        tl.store(scales + row * HEADS + heads, step * tl.load(norm + 2), mask=heads < HEADS)
        integers = round_even(x * scale[:, None])
    else:
        integers = tl.where(valid, snap_fixed(x, unit), 0.0)
    offsets = tl.load(slots + row) * slot_stride + tl.load(places + row) * place_stride
    offsets = offsets + heads[:, None] * head_stride + at[None, :]
    store_limbs(round_int(integers), out, offsets, limb_stride, heads[:, None] < HEADS)


@triton.jit
def _sigmoid(x, table):
    """Compute `codec.exact.linear.sigmoid`."""
    found = tl.load(table + round_int(tl.minimum(tl.abs(x) * _SIGMOID_GRID, _SIGMOID_LAST)))
    return tl.where(x < 0, 1.0 - found, found)


@triton.jit
def activation_kernel(
    y, y_rows, y_bias, y_step, y_stride, table, columns, operand, steps, count, hidden, width, GATED: tl.constexpr,
    BIAS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the activation of one token, SwiGLU where GATED, else GELU, as an operand of two limbs."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside, unit = at < hidden, tl.load(y_step + row)
    x = to_double(tl.load(y + row * y_stride + at, mask=inside, other=0))
    x = x * tl.load(y_rows + at, mask=inside, other=0.0) * unit
    if BIAS:
        x = x + tl.load(y_bias + at, mask=inside, other=0.0)
    if GATED:
        up = to_double(tl.load(y + row * y_stride + hidden + at, mask=inside, other=0))
        up = up * tl.load(y_rows + hidden + at, mask=inside, other=0.0) * unit
        if BIAS:
            up = up + tl.load(y_bias + hidden + at, mask=inside, other=0.0)
        x = x * _sigmoid(x, table) * up
    else:
        x = x * _sigmoid((x * x * _CUBE + _LINE) * x, table)
    scale, step = snap_scales(tl.max(magnitude(x)))
    integers = round_even(x * scale)
    if COLUMNS:
        scaled = integers * tl.load(columns + at, mask=inside, other=0.0)
        finer, fine_step = snap_scales(tl.max(magnitude(scaled)))
        integers = round_even(scaled * finer)
        step = step * fine_step
    tl.store(steps + row, step)
    store_limbs(round_int(integers), operand, row * width + at, count * width, inside)
