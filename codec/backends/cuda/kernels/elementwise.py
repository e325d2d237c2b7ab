"""Compute the element-wise operations of `codec.exact.model` on a GPU, in Triton kernels over rows of tokens.

Each kernel fuses the operations between two matrix products and follows `codec.exact.model` operation by operation in
float64. `launch` forbids the compiler to contract a product and a sum (`enable_fp_fusion`), so every operation is
rounded as in the reference. Rounding to an integer is an addition of 1.5 * 2^52, which is right for magnitudes below
2^51; larger operands are clamped first.

The kernels write operands of matrix products as signed 8-bit limbs: X = 256 * limb[1] + limb[0]. Rows of buffers are
padded, so that kernels of whole tiles need no masks (`codec.backends.cuda.kernels.matmul`). No result depends on the
padding.
"""

from typing import Any

import triton
import triton.language as tl

from codec.model.config import GATE_INPUTS
from codec.numerics import rotary, tables
from codec.numerics.widths import NORM_EPSILON, ROPE_BITS, SNAP_BITS

PAIR_BITS = 15
"""The bit at which operands of four limbs are split into two pairs, so that each pair is within 15 bits."""

_PAIR_BITS = tl.constexpr(PAIR_BITS)
_PAIR = tl.constexpr(1 << PAIR_BITS)
_HALF_BITS = tl.constexpr(SNAP_BITS - 1)
_LIMIT = tl.constexpr(float(1 << (SNAP_BITS - 1)))
_ROUND = tl.constexpr(float(3 << 51))
TWO_52 = tl.constexpr(0x433 << 52)
"""The bits of 2^52 in float64. With an integer below 2^52 in the lowest bits, the bits of the sum of both."""

_SIGNED = tl.constexpr(
    float((1 << 52) + (1 << 31))
)  # the same for an integer to which 2^31 was added, so that no sign is left
_EPSILON = tl.constexpr(NORM_EPSILON)
_SIGMOID_GRID = tl.constexpr(float(tables.SIGMOID_GRID))
_SIGMOID_LAST = tl.constexpr(float(tables.SIGMOID_LENGTH - 1))
_LEAD = tl.constexpr(GATE_INPUTS)
_LEAD_BLOCK = tl.constexpr(triton.next_power_of_2(GATE_INPUTS))
_TURN_LIMB = tl.constexpr(rotary.LIMB_BITS)
_TURN_MASK = tl.constexpr((1 << rotary.LIMB_BITS) - 1)
_TURN_HALF = tl.constexpr(rotary.ROUND_HALF)
_TURN_SHIFT = tl.constexpr(rotary.ROUND_SHIFT)
_TURN_UNIT = tl.constexpr(1.0 / (1 << ROPE_BITS))


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """Run a kernel without contraction of floating-point operations."""
    kernel[grid](*arguments, **settings, enable_fp_fusion=False)


@triton.jit
def power_of_two(n):
    """Compute 2^n as float64 from int64 n."""
    return ((n + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exponent(x):
    """Compute `codec.numerics.fixed_point.exponent` of x >= 0."""
    return (x.to(tl.int64, bitcast=True) >> 52) - 1022


@triton.jit
def round_even(x):
    """Round x to the nearest integer, ties to even, for |x| < 2^51."""
    return (x + _ROUND) - _ROUND


@triton.jit
def to_double(x):
    """Convert int32 or int64 x to float64, int32 by a sum because a GPU's conversions are slow."""
    if x.dtype == tl.int32:
        bits = (x.to(tl.uint32, bitcast=True) ^ 0x80000000).to(tl.int64) | TWO_52
        return bits.to(tl.float64, bitcast=True) - _SIGNED
    else:
        return x.to(tl.float64)


@triton.jit
def round_int(x):
    """Round float64 x to the nearest int32, ties to even, by a sum like `to_double`."""
    return (x + _ROUND).to(tl.int64, bitcast=True).to(tl.int32)


@triton.jit
def reciprocal_sqrt(m):
    """Compute `codec.numerics.fixed_point.reciprocal_sqrt`."""
    k = (52 - exponent(m)) >> 1
    scaled = m * power_of_two(2 * k)
    root = tl.floor(tl.sqrt(scaled))
    root = tl.where(root * root > scaled, root - 1.0, root)
    up = root + 1.0
    root = tl.where(up * up <= scaled, up, root)
    return power_of_two(k) / root


@triton.jit
def magnitude(x):
    """Return the upper half of the bits of |x|, float64: all that `snap_scales` needs, in half the bits to compare."""
    return (x.to(tl.int64, bitcast=True) >> 32).to(tl.int32) & 0x7FFFFFFF


@triton.jit
def exponent_of(largest):
    """Compute `codec.numerics.fixed_point.exponent` of a row's largest `magnitude`, limited as in `snap`, int64."""
    return tl.minimum(tl.maximum((largest >> 20) - 1022, -64), 960).to(tl.int64)


@triton.jit
def snap_scales(largest):
    """Compute (the factor before rounding, the step) of a row from the row's largest `magnitude`."""
    e = exponent_of(largest)
    return power_of_two(-e + _HALF_BITS), power_of_two(e - _HALF_BITS)


@triton.jit
def snap_fixed(x, scale):
    """Compute `codec.numerics.fixed_point.snap_fixed` with a scale in place of fractional bits."""
    return round_even(tl.minimum(tl.maximum(x * scale, -_LIMIT), _LIMIT))


@triton.jit
def store_limbs(x, pointer, offsets, limb_stride, mask):
    """Store int32 x of at most 2^14 as two signed limbs."""
    tl.store(pointer + offsets, x.to(tl.int8), mask=mask)
    tl.store(pointer + limb_stride + offsets, ((x + 128) >> 8).to(tl.int8), mask=mask)


@triton.jit
def residual_kernel(
    x_in, x_out, y, y_rows, y_step, y_scale, y_stride, saved, skip, skip_weight, skip_gate, first, mix, norm,
    columns, operands, steps, lead, lead_steps, count, dim, width,
    UPDATE: tl.constexpr, SAVE: tl.constexpr, SKIP: tl.constexpr, OWN: tl.constexpr, MIX: tl.constexpr,
    MATRICES: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a product to the residual stream of one token, mix it, and normalise it into operands.

    x_in, x_out, saved, skip, first: float64 [rows, dim]. y: integers [rows, y_stride]. The kernel adds
    ((y * y_rows) * y_step) * y_scale to the stream. SKIP: 0 without a skip, 1 for an added skip, 2 for a gated skip.
    OWN: the skip is the stream itself. norm: float64 [2], the scale of the norm and 1 / dim. columns: float64
    [MATRICES, dim], used for the matrices whose bit is set in COLUMNS. operands: int8 [MATRICES, 2, count, width].
    steps: float64 [MATRICES, count]. lead: float64 [rows, GATE_INPUTS], the first integers of the normalised row, with
    lead_steps [rows].
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < dim
    x = tl.load(x_in + row * dim + at, mask=inside, other=0.0)
    if UPDATE:
        product = to_double(tl.load(y + row * y_stride + at, mask=inside, other=0))
        product = product * tl.load(y_rows + at, mask=inside, other=0.0) * tl.load(y_step + row)
        x = x + tl.load(y_scale + at, mask=inside, other=0.0) * product
    if SAVE:
        tl.store(saved + row * dim + at, x, mask=inside)
    if SKIP > 0:
        taken = x
        if not OWN:
            taken = tl.load(skip + row * dim + at, mask=inside, other=0.0)
        taken = tl.load(skip_weight + at, mask=inside, other=0.0) * taken
        if SKIP == 1:  # noqa: SIM108
            x = x + taken
        else:
            x = taken + tl.load(skip_gate + at, mask=inside, other=0.0) * (x - taken)
    if MIX:
        start = tl.load(first + row * dim + at, mask=inside, other=0.0)
        here = x * tl.load(mix + at, mask=inside, other=0.0)
        x = here + start * tl.load(mix + dim + at, mask=inside, other=0.0)
    tl.store(x_out + row * dim + at, x, mask=inside)
    scale, step = snap_scales(tl.max(magnitude(x)))
    snapped = round_even(x * scale)
    mean = tl.sum(snapped * snapped) * step * step * tl.load(norm + 1) + _EPSILON
    step = step * reciprocal_sqrt(mean) * tl.load(norm)
    tl.store(lead + row * _LEAD + at, snapped, mask=inside & (at < _LEAD))
    tl.store(lead_steps + row, step)
    for i in tl.static_range(MATRICES):
        integers, operand_step = snapped, step
        if (COLUMNS >> i) & 1:
            scaled = snapped * tl.load(columns + i * dim + at, mask=inside, other=0.0)
            finer, fine_step = snap_scales(tl.max(magnitude(scaled)))
            integers = round_even(scaled * finer)
            operand_step = step * fine_step
        tl.store(steps + i * count + row, operand_step)
        store_limbs(round_int(integers), operands + i * 2 * count * width, row * width + at, count * width, inside)


@triton.jit
def _heads(y, y_rows, step, row, stride, heads, HEAD_DIM: tl.constexpr, at, valid):
    """Load a product's entries `at` of each head, times row steps and step, float64 [heads, D]."""
    offsets = heads[:, None] * HEAD_DIM + at[None, :]
    product = to_double(tl.load(y + row * stride + offsets, mask=valid, other=0))
    return product * tl.load(y_rows + offsets, mask=valid, other=0.0) * step


@triton.jit
def _turn_product(a, b, c, d):
    """Multiply two rotations as `codec.numerics.rotary` does."""
    a1, b1, c1, d1 = a >> _TURN_LIMB, b >> _TURN_LIMB, c >> _TURN_LIMB, d >> _TURN_LIMB
    a0, b0, c0, d0 = a & _TURN_MASK, b & _TURN_MASK, c & _TURN_MASK, d & _TURN_MASK
    real = a1 * c1 - b1 * d1 + ((a1 * c0 + a0 * c1 - b1 * d0 - b0 * d1) >> _TURN_LIMB)
    return real, a1 * d1 + b1 * c1 + ((a1 * d0 + a0 * d1 + b1 * c0 + b0 * c1) >> _TURN_LIMB)


@triton.jit
def turn_kernel(
    turns, positions, cos, sin, low, rows, PAIRS: tl.constexpr, DIGITS: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute `codec.numerics.rotary.rotations` of one token.

    turns: int64 [2, rows, PAIRS]. cos, sin: float64 [N, PAIRS].
    """
    row, pair = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = pair < PAIRS
    position = tl.load(positions + row)
    at, rest = turns + position % low * PAIRS + pair, position // low
    c, s = tl.load(at, mask=inside, other=0), tl.load(at + rows * PAIRS, mask=inside, other=0)
    for level in tl.static_range(LEVELS):
        at = turns + (low + level * DIGITS + rest % DIGITS) * PAIRS + pair
        other_c, other_s = tl.load(at, mask=inside, other=0), tl.load(at + rows * PAIRS, mask=inside, other=0)
        c, s = _turn_product(c, s, other_c, other_s)
        rest = rest // DIGITS
    c, s = (c + _TURN_HALF) >> _TURN_SHIFT, (s + _TURN_HALF) >> _TURN_SHIFT
    tl.store(cos + row * PAIRS + pair, c.to(tl.float64) * _TURN_UNIT, mask=inside)
    tl.store(sin + row * PAIRS + pair, s.to(tl.float64) * _TURN_UNIT, mask=inside)


@triton.jit
def rotate_kernel(
    y, y_rows, y_step, y_stride, places, slots, cos, sin, norm, out, limb_stride, slot_stride, head_stride,
    place_stride, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, FRACTION: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate the queries or keys of one token, and store limbs in `out` at the token's slot and place.

    y: integers [rows, y_stride], of which the first HEADS * HEAD_DIM are used. norm: float64 [1], 1 / HEAD_DIM. cos,
    sin: float64 [rows, HALF]. out: int8; the last dimension is contiguous, and BLOCK entries of that dimension are
    written.
    """
    row = tl.program_id(0).to(tl.int64)
    heads, at = tl.arange(0, HEAD_BLOCK), tl.arange(0, BLOCK)
    valid = (heads[:, None] < HEADS) & (at[None, :] < HEAD_DIM)
    step = tl.load(y_step + row)
    x = _heads(y, y_rows, step, row, y_stride, heads, HEAD_DIM, at, valid)
    partner = tl.where(at < HALF, at + HALF, at - HALF)
    turns = at < 2 * HALF
    other = _heads(y, y_rows, step, row, y_stride, heads, HEAD_DIM, partner, valid & turns[None, :])
    scale, head_step = snap_scales(tl.max(magnitude(x), 1))
    snapped = round_even(x * scale[:, None])
    mean = tl.sum(snapped * snapped, 1) * head_step * head_step * tl.load(norm) + _EPSILON
    head_step = (head_step * reciprocal_sqrt(mean))[:, None]
    x = snapped * head_step
    other = round_even(other * scale[:, None]) * head_step
    angle = row * HALF + tl.where(at < HALF, at, at - HALF)
    c = tl.load(cos + angle, mask=turns, other=1.0)[None, :]
    s = tl.load(sin + angle, mask=turns, other=0.0)[None, :]
    turned = tl.where((at < HALF)[None, :], x * c + other * s, x * c - other * s)
    turned = snap_fixed(tl.where(turns[None, :], turned, x), FRACTION)
    offsets = tl.load(slots + row) * slot_stride + tl.load(places + row) * place_stride
    offsets = offsets + heads[:, None] * head_stride + at[None, :]
    store_limbs(round_int(turned), out, offsets, limb_stride, heads[:, None] < HEADS)


@triton.jit
def value_kernel(
    y, y_rows, y_bias, y_step, y_stride, places, slots, scales, own, out, limb_stride, slot_stride, head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BIAS: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Snap one head's values of RUN consecutive tokens to their grid.

    The kernel stores limbs in `out`, for each head [places / TOGETHER, BLOCK, TOGETHER], and int16 in `own` [rows,
    kv_dim]. RUN is 1 or a multiple of TOGETHER; in the second case the first place is a multiple of TOGETHER, too.
    scales: float64 [HEADS], two to the power of each head's fractional bits.
    """
    start, head = tl.program_id(0).to(tl.int64) * RUN, tl.program_id(1)
    token, at = tl.arange(0, RUN), tl.arange(0, BLOCK)
    inside = (at < HEAD_DIM)[:, None]
    entry = head * HEAD_DIM + at
    x = to_double(tl.load(y + (start + token)[None, :] * y_stride + entry[:, None], mask=inside, other=0))
    x = x * tl.load(y_rows + entry, mask=at < HEAD_DIM, other=0.0)[:, None] * tl.load(y_step + start + token)[None, :]
    if BIAS:
        x = x + tl.load(y_bias + entry, mask=at < HEAD_DIM, other=0.0)[:, None]
    value = round_int(snap_fixed(x, tl.load(scales + head)))
    tl.store(own + (start + token)[None, :] * (HEADS * HEAD_DIM) + entry[:, None], value.to(tl.int16), mask=inside)
    first = tl.load(places + start)
    block = tl.load(slots + start) * slot_stride + head * head_stride + first // TOGETHER * (TOGETHER * BLOCK)
    place = first % TOGETHER + token // TOGETHER * (TOGETHER * BLOCK) + token % TOGETHER
    store_limbs(value, out, block + at[:, None] * TOGETHER + place[None, :], limb_stride, None)


@triton.jit
def _gates(lead, lead_step, vectors, vector_steps, sigmoid, row, heads, HEADS: tl.constexpr):
    """Compute the gates of a row, float64 [heads] (`codec.exact.linear.ExactGate`)."""
    at = tl.arange(0, _LEAD_BLOCK)
    inside = at < _LEAD
    first = tl.load(lead + row * _LEAD + at, mask=inside, other=0.0)
    mask = (heads < HEADS)[:, None] & inside[None, :]
    products = tl.load(vectors + at[None, :] * HEADS + heads[:, None], mask=mask, other=0.0) * first[None, :]
    x = tl.sum(products, 1) * tl.load(vector_steps + heads, mask=heads < HEADS, other=0.0) * tl.load(lead_step + row)
    found = tl.load(sigmoid + round_int(tl.minimum(tl.abs(x) * _SIGMOID_GRID, _SIGMOID_LAST)))
    return tl.where(x < 0, 1.0 - found, found)


@triton.jit
def mixed_kernel(
    mixed, own, lead, lead_step, vectors, vector_steps, sigmoid, value_step, columns, operand, steps, count, width,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, XSA: tl.constexpr, GATED: tl.constexpr,
    COLUMNS: tl.constexpr, HEAD_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn the outputs of attention for one token into an operand.

    mixed: float64 [rows, dim], in units of the value grids. GATED: heads are multiplied with gates. lead: float64
    [rows, GATE_INPUTS], the first integers of the normalised row, with lead_step [rows]. vectors: float64 [GATE_INPUTS,
    HEADS], integers, with vector_steps [HEADS]. sigmoid: float64, a table.
    """
    row = tl.program_id(0).to(tl.int64)
    heads, at = tl.arange(0, HEAD_BLOCK), tl.arange(0, BLOCK)
    valid = (heads[:, None] < HEADS) & (at[None, :] < HEAD_DIM)
    index = heads[:, None] * HEAD_DIM + at[None, :]
    x = tl.load(mixed + row * (HEADS * HEAD_DIM) + index, mask=valid, other=0.0)
    if XSA:
        kv = (heads // GROUP)[:, None] * HEAD_DIM + at[None, :]
        value = tl.load(own + row * (HEADS // GROUP * HEAD_DIM) + kv, mask=valid, other=0).to(tl.float64)
        dot = tl.sum(round_even(x) * value, 1)
        square = tl.maximum(tl.sum(value * value, 1), 1.0)
        x = x - (dot / square)[:, None] * value
    x = x * tl.load(value_step + heads // GROUP, mask=heads < HEADS, other=0.0)[:, None]
    if GATED:
        x = x * _gates(lead, lead_step, vectors, vector_steps, sigmoid, row, heads, HEADS)[:, None]
    scale, step = snap_scales(tl.max(tl.max(magnitude(x), 1), 0))
    integers = round_even(x * scale)
    if COLUMNS:
        scaled = integers * tl.load(columns + index, mask=valid, other=0.0)
        finer, fine_step = snap_scales(tl.max(tl.max(magnitude(scaled), 1), 0))
        integers = round_even(scaled * finer)
        step = step * fine_step
    tl.store(steps + row, step)
    store_limbs(round_int(integers), operand, row * width + index, count * width, valid)


@triton.jit
def activate_kernel(
    y, y_rows, y_step, y_stride, columns, operand, steps, count, hidden, width, LEAKY: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turn the squared activation of one token into an operand of two limbs with column steps, of four without."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < hidden
    x = to_double(tl.load(y + row * y_stride + at, mask=inside, other=0))
    x = x * tl.load(y_rows + at, mask=inside, other=0.0) * tl.load(y_step + row)
    x = tl.maximum(x, x * 0.5 if LEAKY else x * 0.0)
    scale, step = snap_scales(tl.max(magnitude(x)))
    x = round_even(x * scale)
    square, step = x * x, step * step
    offsets, limb = row * width + at, count * width
    if COLUMNS:
        scaled = square * tl.load(columns + at, mask=inside, other=0.0)
        finer, fine_step = snap_scales(tl.max(magnitude(scaled)))
        step = step * fine_step
        store_limbs(round_int(scaled * finer), operand, offsets, limb, inside)
    else:
        whole = round_int(square)
        low = ((whole + _PAIR // 2) & (_PAIR - 1)) - _PAIR // 2
        store_limbs(low, operand, offsets, limb, inside)
        store_limbs((whole - low) >> _PAIR_BITS, operand + 2 * limb, offsets, limb, inside)
    tl.store(steps + row, step)
