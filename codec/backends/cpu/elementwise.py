"""Compute the element-wise operations of the network in compiled loops over rows of tokens.

Sums of integers may have any order, and any width that holds the sums. Operations on fractions are the IEEE operations
of `codec.exact.model` in the same order; without `fastmath`, numba neither fuses nor reorders operations.
"""

import math

import numpy as np

from codec.compiled import kernel
from codec.numerics.tables import SIGMOID_GRID, TURN_DIGITS, TURN_LEVELS
from codec.numerics.widths import LIMB_BITS, NORM_EPSILON, ROPE_BITS, ROUND_HALF, ROUND_SHIFT, SNAP_BITS

_LIMIT = float(1 << (SNAP_BITS - 1))
_MAGNITUDE = (1 << 63) - 1  # the bits of a float64 without its sign
_LIMB, _ROPE_UNIT = (1 << LIMB_BITS) - 1, math.ldexp(1.0, -ROPE_BITS)


@kernel
def snap(x, out):
    """Snap one row x [n] into `out`, int32 [n], and return the step (`codec.numerics.fixed_point.snap`)."""
    largest = np.int64(0)
    for bits in x.view(np.int64):  # magnitudes have the order of their bits, and the maximum of integers is faster
        magnitude = bits & _MAGNITUDE
        largest = magnitude if magnitude > largest else largest
    exponent = min(max(int(largest >> 52) - 1022, -64), 960)
    scale = math.ldexp(1.0, SNAP_BITS - 1 - exponent)
    for i in range(len(x)):
        out[i] = np.int32(np.rint(x[i] * scale))
    return math.ldexp(1.0, exponent - SNAP_BITS + 1)


@kernel
def reciprocal_sqrt(m):
    """Compute `codec.numerics.fixed_point.reciprocal_sqrt` of one number."""
    k = (52 - math.frexp(m)[1]) >> 1
    scaled = m * math.ldexp(1.0, 2 * k)
    root = np.floor(math.sqrt(scaled))
    if root * root > scaled:
        root -= 1.0
    if (root + 1.0) * (root + 1.0) <= scaled:
        root += 1.0
    return math.ldexp(1.0, k) / root


@kernel
def norm_row(x, out, scale):
    """Snap one row x [n] into `out`, int32 [n], and return the step that normalises the row, times `scale`."""
    step = snap(x, out)
    squares = np.int64(0)
    for value in out:
        squares += np.int64(value) * np.int64(value)
    mean = np.float64(squares) * step * step * (1.0 / len(x)) + NORM_EPSILON
    return step * reciprocal_sqrt(mean) * scale


@kernel
def norm(x, scale):
    """Snap rows x [n, dim] to int32 [n, dim], and return the integers and the steps [n] that normalise the rows."""
    out, steps = np.empty(x.shape, np.int32), np.empty(x.shape[0])
    for i in range(x.shape[0]):
        steps[i] = norm_row(x[i], out[i], scale)
    return out, steps


@kernel
def fixed(x, scale):
    """Compute `codec.numerics.fixed_point.snap_fixed` of one number."""
    return np.int16(min(max(np.rint(x * scale), -_LIMIT), _LIMIT))


@kernel
def _turn_product(a, b, c, d):
    """Multiply two rotations as `codec.numerics.rotary` does."""
    a1, b1, c1, d1 = a >> LIMB_BITS, b >> LIMB_BITS, c >> LIMB_BITS, d >> LIMB_BITS
    a0, b0, c0, d0 = a & _LIMB, b & _LIMB, c & _LIMB, d & _LIMB
    real = a1 * c1 - b1 * d1 + ((a1 * c0 + a0 * c1 - b1 * d0 - b0 * d1) >> LIMB_BITS)
    return real, a1 * d1 + b1 * c1 + ((a1 * d0 + a0 * d1 + b1 * c0 + b0 * c1) >> LIMB_BITS)


@kernel
def rotations(turns, positions):
    """Compute cosines and sines [n, pairs] of positions [n] (`codec.numerics.rotary.rotations`)."""
    cos, sin = np.empty((len(positions), turns.shape[2])), np.empty((len(positions), turns.shape[2]))
    low = turns.shape[1] - TURN_LEVELS * TURN_DIGITS
    for i in range(len(positions)):
        for t in range(turns.shape[2]):
            rest, row = positions[i] // low, positions[i] % low
            c, s = turns[0, row, t], turns[1, row, t]
            for level in range(TURN_LEVELS):
                row = low + level * TURN_DIGITS + rest % TURN_DIGITS
                c, s = _turn_product(c, s, turns[0, row, t], turns[1, row, t])
                rest //= TURN_DIGITS
            cos[i, t] = np.float64((c + ROUND_HALF) >> ROUND_SHIFT) * _ROPE_UNIT
            sin[i, t] = np.float64((s + ROUND_HALF) >> ROUND_SHIFT) * _ROPE_UNIT
    return cos, sin


@kernel
def rotate(x, cos, sin, scale, snapped, out):
    """Normalise one head x [head_dim] of a query or key, rotate by cos, sin [rotary_dims / 2], and snap to `out`."""
    step, half = norm_row(x, snapped, 1.0), len(cos)
    for t in range(half):
        a, b = snapped[t] * step, snapped[half + t] * step
        out[t] = fixed(a * cos[t] + b * sin[t], scale)
        out[half + t] = fixed(b * cos[t] - a * sin[t], scale)
    for t in range(2 * half, len(x)):
        out[t] = fixed(snapped[t] * step, scale)


@kernel
def sigmoid(x, table):
    """Compute `codec.exact.linear.sigmoid` of x [n, gates] in place; `table` is in units of 1."""
    last = len(table) - 1
    for i in range(x.shape[0]):
        for h in range(x.shape[1]):
            index = np.rint(abs(x[i, h]) * np.float64(SIGMOID_GRID))
            found = table[int(min(index, np.float64(last)))]
            x[i, h] = 1.0 - found if x[i, h] < 0.0 else found


@kernel
def snap_rows(x):
    """Snap rows x [n, dim] to int32 [n, dim], and return the integers and the steps [n]."""
    out, steps = np.empty(x.shape, np.int32), np.empty(x.shape[0])
    for i in range(x.shape[0]):
        steps[i] = snap(x[i], out[i])
    return out, steps


@kernel
def activate(hidden, slope, steps):
    """Snap and square the activations of `hidden` [n, hidden] (overwritten): return int32, and fill in `steps` [n]."""
    squares = np.empty(hidden.shape, np.int32)
    for i in range(hidden.shape[0]):
        for t in range(hidden.shape[1]):
            if hidden[i, t] < 0.0:
                hidden[i, t] *= slope
        step = snap(hidden[i], squares[i])
        steps[i] = step * step
        for t in range(hidden.shape[1]):
            squares[i, t] *= squares[i, t]
    return squares


@kernel
def add(x, scale, y):
    """Add scale [dim] * y [n, dim] to x [n, dim] in place."""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] += scale[t] * y[i, t]


@kernel
def mix(x, weights, first):
    """Mix x [n, dim] in place with the first residual stream, by weights [2, dim]."""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] = x[i, t] * weights[0, t] + first[i, t] * weights[1, t]


@kernel
def mix_skip(x, skip, weights, gates, gated):
    """Add an output of the first half, times weights [dim], to x [n, dim] in place; or mix both by gates [dim]."""
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            value = weights[t] * skip[i, t]
            x[i, t] = value + gates[t] * (x[i, t] - value) if gated else x[i, t] + value
