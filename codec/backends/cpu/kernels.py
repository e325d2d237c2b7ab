"""The exact network on integers that a processor multiplies fast: compiled loops over rows of tokens.

They compute what `codec.exact.model` computes, to the last bit, and follow it step by step. Sums of integers may be
taken in any order and width that holds them: products of 16 bits with sums of 32 here, where `codec.exact.model` has
float64. Every step on fractions is the same IEEE operation in the same order; numba fuses and reorders none without
`fastmath`.

A row is one token of one sequence: its `position` there, and the `slot` of the caches that holds the sequence. A slot
is a ring: position p is at place p % places, and sees the last `window` positions, itself included. All rows of a call
write their keys and values before any is read, so whole sequences and single steps are the same code; a ring has a
place for each position of a window, and one for each row after the first that a call has of a sequence.

Layers are stacked into arrays [layers, ...], so that one compilation serves every model. The kernels that `run` calls
are all in this file, because numba's cache on disk notices changes of one file only.
"""

import math

import numpy as np
from numba import njit

from codec.backends.cpu.matmul import COLUMNS, ROWS, WIDE, multiply, multiply_add, multiply_wide
from codec.exact.attention import SOFTMAX_BITS
from codec.exact.model import NORM_EPSILON
from codec.model.config import GATE_INPUTS
from codec.numerics.fixed_point import SNAP_BITS
from codec.numerics.rotary import LIMB_BITS, ROUND_HALF, ROUND_SHIFT
from codec.numerics.tables import LEVELS_PER_BIT, ROPE_BITS, SIGMOID_GRID, TURN_DIGITS, TURN_LEVELS, exp2_series

_LIMIT = float(1 << (SNAP_BITS - 1))
_LAST = float((SOFTMAX_BITS + 2) * LEVELS_PER_BIT - 1)  # from here on down, powers of two round to 0
_SHIFT = 9  # from 30 bits to one bit more than weights have
_SERIES = tuple(math.ldexp(a, _SHIFT + 1) for a in exp2_series(SOFTMAX_BITS))  # of 30 bits, as many as int32 holds
_OCTAVE = LEVELS_PER_BIT.bit_length() - 1
_MAGNITUDE = (1 << 63) - 1  # the bits of a float64 without its sign
_LIMB, _ROPE_UNIT = (1 << LIMB_BITS) - 1, 2.0**-ROPE_BITS

kernel = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def _snap(x, out):
    """`codec.numerics.fixed_point.snap` of one row: fills `out`, returns the step."""
    largest = np.int64(0)
    for bits in x.view(np.int64):  # the order of magnitudes is that of their bits, whose maximum is faster to find
        magnitude = bits & _MAGNITUDE
        largest = magnitude if magnitude > largest else largest
    exponent = min(max(int(largest >> 52) - 1022, -64), 960)
    scale = math.ldexp(1.0, SNAP_BITS - 1 - exponent)
    for i in range(len(x)):
        out[i] = np.int32(np.rint(x[i] * scale))
    return math.ldexp(1.0, exponent - SNAP_BITS + 1)


@kernel
def reciprocal_sqrt(m):
    """`codec.numerics.fixed_point.reciprocal_sqrt`."""
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
    step = _snap(x, out)
    squares = np.int64(0)
    for value in out:
        squares += np.int64(value) * np.int64(value)
    mean = np.float64(squares) * step * step * (1.0 / len(x)) + NORM_EPSILON
    return step * reciprocal_sqrt(mean) * scale


@kernel
def _norm(x, scale):
    """Snapped rows int32 [n, dim] of x [n, dim] and the steps [n] that normalise them."""
    out, steps = np.empty(x.shape, np.int32), np.empty(x.shape[0])
    for i in range(x.shape[0]):
        steps[i] = norm_row(x[i], out[i], scale)
    return out, steps


@kernel
def project(linear, layer, x, steps):
    """The product [n, R] of the rows x * steps (int32 [n, K], [n]) with a matrix."""
    n, width = x.shape
    weights, rows = linear.integers[layer], linear.rows[layer]
    if linear.has_columns[layer]:
        columns, row = linear.columns[layer], np.empty(width)
        finer_x, finer_steps = np.empty_like(x), np.empty_like(steps)
        for i in range(n):
            for t in range(width):
                row[t] = np.float64(x[i, t]) * columns[t]
            finer_steps[i] = steps[i] * _snap(row, finer_x[i])
        x, steps = finer_x, finer_steps
    out, digits = np.zeros((n, len(rows))), _digits(x, linear.digit_bits[layer], linear.digit_count[layer])
    products = np.empty((digits.shape[1], len(weights) * COLUMNS), np.int32)
    base = math.ldexp(1.0, linear.digit_bits[layer])
    for k in range(len(digits)):
        for b in range(len(weights)):
            for i in range(0, n, ROWS):
                multiply(digits[k, i:], weights[b], products[i:, b * COLUMNS :])
        for i in range(n):
            for r in range(len(rows)):
                out[i, r] = out[i, r] * base + products[i, r]
    for i in range(n):
        for r in range(len(rows)):
            out[i, r] = out[i, r] * rows[r] * steps[i]
    return out


@kernel
def _digits(x, bits, count):
    """The digits of the integers x [n, K] in base 2^bits: int16 [count, n, K], with zeros to fill tiles.

    The highest is first, so that a sum that takes them in turn never outgrows the last. It is what remains of x, the
    others are from -2^(bits-1) to 2^(bits-1).
    """
    n, width = x.shape
    out, half = np.zeros((count, -(-n // ROWS) * ROWS, width + width % 2), np.int16), 1 << (bits - 1)
    for k in range(count):
        shift = bits * (count - 1 - k)
        rounding = half * (((1 << shift) - 1) // ((1 << bits) - 1))  # what rounding off lower digits one by one adds
        for i in range(n):
            for t in range(width):
                rest = np.int32(x[i, t] + rounding) >> shift
                out[k, i, t] = rest - (((rest + half) >> bits) << bits) if k else rest
    return out


@kernel
def _fixed(x, scale):
    """`codec.numerics.fixed_point.snap_fixed` of one number."""
    return np.int16(min(max(np.rint(x * scale), -_LIMIT), _LIMIT))


@kernel
def _turn_product(a, b, c, d):
    """The product in `codec.numerics.rotary`."""
    a1, b1, c1, d1 = a >> LIMB_BITS, b >> LIMB_BITS, c >> LIMB_BITS, d >> LIMB_BITS
    a0, b0, c0, d0 = a & _LIMB, b & _LIMB, c & _LIMB, d & _LIMB
    real = a1 * c1 - b1 * d1 + ((a1 * c0 + a0 * c1 - b1 * d0 - b0 * d1) >> LIMB_BITS)
    return real, a1 * d1 + b1 * c1 + ((a1 * d0 + a0 * d1 + b1 * c0 + b0 * c1) >> LIMB_BITS)


@kernel
def rotations(turns, positions):
    """`codec.numerics.rotary.rotations`: cos and sin [n, pairs] of positions [n]."""
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
def _rotate(x, cos, sin, scale, snapped, out):
    """Normalise and rotate one head x [head_dim] of a query or key by cos, sin [rotary_dims / 2]; integers to `out`."""
    step, half = norm_row(x, snapped, 1.0), len(cos)
    for t in range(half):
        a, b = snapped[t] * step, snapped[half + t] * step
        out[t] = _fixed(a * cos[t] + b * sin[t], scale)
        out[half + t] = _fixed(b * cos[t] - a * sin[t], scale)
    for t in range(2 * half, len(x)):
        out[t] = _fixed(snapped[t] * step, scale)


@kernel
def _remember(new_keys, new_values, rows, value_scale, rope, cache):
    """Write the rows' keys and values, float64 [n, kv_dim], into the caches (see `run`)."""
    (positions, slots), (cos, sin, scale), (keys, values) = rows, rope, cache
    size = new_keys.shape[1] // len(value_scale)
    snapped, key = np.empty(size, np.int32), np.empty(size, np.int16)
    for i in range(len(positions)):
        slot, p = slots[i], positions[i] % (keys.shape[2] * WIDE)
        for h in range(len(value_scale)):
            at = h * size
            _rotate(new_keys[i, at : at + size], cos[i], sin[i], scale, snapped, key)
            for t in range(size):
                keys[slot, h, p // WIDE, t // 2, p % WIDE, t % 2] = key[t]
                value = _fixed(new_values[i, at + t], value_scale[h])
                values[slot, h, p // WIDE, t // COLUMNS, p % WIDE // 2, t % COLUMNS, p % 2] = value


@kernel
def softmax(scores, scale, limit, low, high):
    """Fills in the digits of the attention weights of scores [n], `low` + 2^11 `high`, and returns their sum.

    Levels, scores times `scale`, saturate at `limit`.

    A weight is an entry of `tables.exp2_table`: a polynomial's, shifted and rounded, in which look-ups, that processors
    do one by one, have no part.
    """
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 = _SERIES
    least, most = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
    for s in range(len(scores)):
        least = scores[s] if scores[s] < least else least
        most = scores[s] if scores[s] > most else most
    top, total = min(max(np.rint(np.float64(most if scale >= 0 else least) * scale), -limit), limit), np.int64(0)
    for s in range(len(scores)):
        below = top - min(max(np.rint(np.float64(scores[s]) * scale), -limit), limit)
        index = np.int32(below if below < _LAST else _LAST)
        x = np.float64(index & (LEVELS_PER_BIT - 1)) - LEVELS_PER_BIT / 2
        power = ((((((((a9 * x + a8) * x + a7) * x + a6) * x + a5) * x + a4) * x + a3) * x + a2) * x + a1) * x + a0
        shifted = np.int32(power) >> (_SHIFT + (index >> _OCTAVE))
        weight = (shifted + 1) >> 1  # rounded
        digit = (weight + 1024) >> 11
        low[s], high[s] = weight - (digit << 11), digit
        total += weight
    return np.float64(total)


@kernel
def weighted_sum(digits, values, base, count, sums):
    """Fills in sums int64 [4, size], products of digits [4, count or more] with the values from position `base` on.

    Values are [places / WIDE, size / COLUMNS, WIDE / 2, COLUMNS, 2]; the base is a multiple of WIDE. Digits of 11 bits
    times values of 15 bits: WIDE products stay below 2^31.
    """
    sums[:] = 0
    for at in range(0, count, WIDE):
        place, pairs = (base + at) // WIDE % len(values), (min(WIDE, count - at) + 1) // 2
        for b in range(values.shape[1]):
            multiply_add(digits[:, at:], values[place, b, :pairs], sums[:, b * COLUMNS :])


@kernel
def _remove_own(mixed, own):
    """Remove the component of a head's output [head_dim] along the token's own value [head_dim / COLUMNS, COLUMNS]."""
    dot = square = np.int64(0)
    for t in range(len(mixed)):
        value = np.int64(own[t // COLUMNS, t % COLUMNS])
        dot += np.int64(np.rint(mixed[t])) * value
        square += value * value
    ratio = np.float64(dot) / np.float64(square if square > 0 else 1)
    for t in range(len(mixed)):
        mixed[t] -= ratio * np.float64(own[t // COLUMNS, t % COLUMNS])


@kernel
def _gates(network, layer, hidden, steps):
    """`codec.exact.linear.ExactGate`: gates [n, heads] of normalised rows; 1 without gates."""
    if not network.attention_gate:
        return np.ones((len(hidden), network.score_scale.shape[1]))
    out, last = project(network.gate, layer, hidden[:, :GATE_INPUTS].copy(), steps), len(network.sigmoid) - 1
    for i in range(out.shape[0]):
        for h in range(out.shape[1]):
            index = np.rint(abs(out[i, h]) * np.float64(SIGMOID_GRID))
            found = network.sigmoid[int(min(index, np.float64(last)))]
            out[i, h] = 1.0 - found if out[i, h] < 0.0 else found
    return out


@kernel
def _attend(queries, gates, rows, window, score_scale, value_step, rope, cache, xsa):
    """Snapped rows int32 [n, dim] and steps of what attention reads, for queries float64 [n, dim] (overwritten).

    Heads' outputs are multiplied with gates [n, heads]. Two heads with the same keys are taken at a time; where one is
    left over, the other's places hold what was there before, and nothing that is made of it is read.
    """
    (positions, slots), (cos, sin, query_scale), (keys, values) = rows, rope, cache
    heads, blocks = len(score_scale), keys.shape[2]
    size, group = queries.shape[1] // heads, heads // len(value_step)
    snapped, query = np.empty(size, np.int32), np.zeros((2, size), np.int16)
    width = (blocks + 1) * WIDE  # of a window that begins within a block
    scores, digits = np.empty((2, width), np.int32), np.zeros((4, width), np.int16)
    sums, totals = np.empty((4, values.shape[3] * COLUMNS), np.int64), np.empty(2)
    mixed, steps = np.empty(queries.shape, np.int32), np.empty(len(queries))
    for i in range(len(queries)):
        slot, p, own = slots[i], positions[i], positions[i] % (blocks * WIDE)
        first = max(0, p - window + 1)
        base = first // WIDE * WIDE
        begin, count = first - base, p + 1 - base
        digits[:, :begin] = 0
        digits[:, count : count + 1] = 0  # the other of a pair
        for h in range(heads):
            kv, place = h // group, h % group % 2
            out = queries[i, h * size : (h + 1) * size]
            _rotate(out, cos[i], sin[i], query_scale, snapped, query[place])
            if place == 0 and h % group < group - 1:
                continue  # until there are two
            # The length of a query or key is 2^14 but for rounding: their products are far below 2^31.
            for at in range(0, count, WIDE):
                multiply_wide(query, keys[slot, kv, (base + at) // WIDE % blocks], scores[:, at:])
            for g in range(place + 1):
                low, high, scale = digits[g, begin:count], digits[2 + g, begin:count], score_scale[h - place + g]
                totals[g] = softmax(scores[g, begin:count], scale, np.inf, low, high)
            weighted_sum(digits, values[slot, kv], base, count, sums)
            for g in range(place + 1):
                at = (h - place + g) * size
                for t in range(size):
                    queries[i, at + t] = np.float64(sums[g, t] + (sums[2 + g, t] << 11)) / totals[g]
                if xsa:
                    _remove_own(
                        queries[i, at : at + size], values[slot, kv, own // WIDE, :, own % WIDE // 2, :, own % 2]
                    )
                for t in range(size):
                    queries[i, at + t] = queries[i, at + t] * value_step[kv] * gates[i, h - place + g]
        steps[i] = _snap(queries[i], mixed[i])
    return mixed, steps


@kernel
def _activate(hidden, slope, steps):
    """Squares of snapped activations int32 [n, hidden] of `hidden` (overwritten); fills in their steps."""
    squares = np.empty(hidden.shape, np.int32)
    for i in range(hidden.shape[0]):
        for t in range(hidden.shape[1]):
            if hidden[i, t] < 0.0:
                hidden[i, t] *= slope
        step = _snap(hidden[i], squares[i])
        steps[i] = step * step
        for t in range(hidden.shape[1]):
            squares[i, t] *= squares[i, t]
    return squares


@kernel
def _add(x, scale, y):
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] += scale[t] * y[i, t]


@kernel
def _mix(x, weights, first):
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] = x[i, t] * weights[0, t] + first[i, t] * weights[1, t]


@kernel
def _mix_skip(x, skip, weights, gates, gated):
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            value = weights[t] * skip[i, t]
            x[i, t] = value + gates[t] * (x[i, t] - value) if gated else x[i, t] + value


@kernel
def run(network, x, positions, slots, keys, values, window):
    """Run rows through the network.

    Args:
        network: a `codec.backends.cpu.constants.Network`.
        x: float64 [n, dim], embedded tokens; overwritten.
        positions, slots: int64 [n].
        keys: int16 [executions, slots, kv_heads, places / WIDE, head_dim / 2, WIDE, 2].
        values: int16 [executions, slots, kv_heads, places / WIDE, head_dim / COLUMNS, WIDE / 2, COLUMNS, 2].
        window: positions that a row sees.

    Returns:
        The snapped, normalised last hidden state: int32 [n, dim] and its steps [n].
    """
    c, rows, (cos, sin) = network, (positions, slots), rotations(network.turns, positions)
    rope = cos, sin, network.query_scale
    hidden, steps = _norm(x, 1.0)
    for i in range(x.shape[0]):
        for t in range(x.shape[1]):
            x[i, t] = hidden[i, t] * steps[i]
    first, skips = x.copy(), np.zeros((c.encoder_length, *x.shape))
    for e in range(len(c.schedule)):
        layer, j = c.schedule[e], e - c.encoder_length
        if 0 <= j < c.encoder_length:
            _mix_skip(x, skips[c.encoder_length - 1 - j], c.skip_weights[j], c.skip_gates[j], c.gated)
        _mix(x, c.residual_mix[layer], first)
        hidden, steps = _norm(x, c.norm_scale[layer])
        new_keys, new_values = project(c.key, layer, hidden, steps), project(c.value, layer, hidden, steps)
        queries, gates = project(c.query, layer, hidden, steps), _gates(c, layer, hidden, steps)
        cache, value_step = (keys[e], values[e]), c.value_step[layer]
        _remember(new_keys, new_values, rows, c.value_scale[layer], rope, cache)
        hidden, steps = _attend(
            queries, gates, rows, window, c.score_scale[layer], value_step, rope, cache, c.xsa[layer]
        )
        mixed = project(c.attention_out, layer, hidden, steps)
        if not c.parallel[layer]:
            _add(x, c.attention_scale[layer], mixed)
        hidden, steps = _norm(x, c.norm_scale[layer])
        if c.parallel[layer]:
            _add(x, c.attention_scale[layer], mixed)
        hidden = _activate(project(c.up, layer, hidden, steps), c.slope, steps)
        _add(x, c.mlp_scale[layer], project(c.down, layer, hidden, steps))
        if e < c.encoder_length:
            _add(skips[e], np.ones(x.shape[1]), x)
    return _norm(x, 1.0)
