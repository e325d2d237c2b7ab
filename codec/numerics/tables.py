"""The constant tables of exact inference, computed with integers and correctly rounded decimals alone.

The sine, exponential and tanh of libraries differ in the last bit between machines, so no table that decides a
decoder's integers may use them. Python's big integers and `decimal` (whose exp and ln are correctly rounded by
specification) are the same everywhere.
"""

from collections.abc import Callable
from decimal import Context, Decimal
from functools import lru_cache, wraps
from io import BytesIO
from math import isqrt, ldexp

import numpy as np
from numpy.typing import NDArray

from codec.cache import kept
from codec.numerics.widths import TURN_BITS

LEVELS_PER_BIT = 4096
"""Logits and attention scores are whole numbers of 1/4096 bit: a relative error of at most 8.5e-5 in a probability,
which costs about 2e-9 bit a symbol."""

EXP2_LENGTH = 32 * LEVELS_PER_BIT + 1
"""Entries of an exp2 table. The last entry is 0 for up to 30 fractional bits and serves as "minus infinity"."""

FRACTION_BITS = 60
"""Fractional bits of `octave`: plenty for exp2 tables of up to 30 bits."""

LOGIT_GRID = 1024
"""Logits are rounded to 1/1024 nat before the softcap table: an error of variance 8e-8 nat^2, 4e-8 nat a token."""

SIGMOID_GRID = 4096
"""Arguments of data-dependent sigmoids are rounded to 1/4096: an error of at most 3.1e-5 in the gate."""

SIGMOID_BITS = 16
"""Fractional bits of a data-dependent sigmoid."""

SIGMOID_LENGTH = 12 * SIGMOID_GRID + 1
"""Entries of `sigmoid_table`: from the argument 12 on, the sigmoid rounds to 1."""

TURN_ROWS, TURN_DIGITS, TURN_LEVELS = 1024, 256, 3
"""First rows, rows of a level and levels of `rope_turns`: 2^34 positions, more tokens than a document has."""

YARN_TURNS = (1, 32)
"""Turns within the training window between which rotations are slowed in part: the choice of the YaRN paper."""

_SERIES = (
    741455.2001830874,
    -125.47304262755253,
    0.01061661176115836,
    -5.988668128306259e-07,
    2.5336045788301778e-11,
    -8.573067293529759e-16,
    2.4198127698901236e-20,
    -6.291355295325207e-25,
)  # of `exp2_series(20)`

_ONE = 1 << 160
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
_DECIMAL = Context(prec=60)


def _kept(make: Callable[..., NDArray[np.int64]]) -> Callable[..., NDArray[np.int64]]:
    """Make a table once for a version of the sources: the cache keeps the array, and this process, too."""

    @lru_cache
    @wraps(make)
    def table(*arguments: float) -> NDArray[np.int64]:
        def write() -> bytes:
            file = BytesIO()
            np.save(file, make(*arguments))
            return file.getvalue()

        name = "-".join(map(repr, arguments))
        return np.load(BytesIO(kept(f"tables/{make.__name__}-{name}.npy", write)))

    return table


def _fixed(value: Decimal) -> int:
    """Return `value` in units of 2^-160."""
    return int(_DECIMAL.multiply(value, Decimal(_ONE)))


@_kept
def octave() -> NDArray[np.int64]:
    """Return 2^(FRACTION_BITS - i / LEVELS_PER_BIT), rounded, as entry i: int64 [LEVELS_PER_BIT]."""
    root = _ONE >> 1
    for _ in range(LEVELS_PER_BIT.bit_length() - 1):
        root = isqrt(root << 160)
    power, found = _ONE, []
    shift = 160 - FRACTION_BITS
    for _ in range(LEVELS_PER_BIT):
        found.append((power + (1 << (shift - 1))) >> shift)
        power = power * root >> 160
    return np.array(found, np.int64)


@lru_cache
def exp2_table(bits: int) -> NDArray[np.int64]:
    """Return 2^(bits - i / LEVELS_PER_BIT), rounded from `octave`, as entry i: int64 [EXP2_LENGTH]."""
    table = np.zeros(EXP2_LENGTH, np.int64)
    for n in range(32):
        shift = FRACTION_BITS - bits + n
        if shift < 62:
            table[n * LEVELS_PER_BIT : (n + 1) * LEVELS_PER_BIT] = (octave() + (1 << (shift - 1))) >> shift
    return table


def exp2_series(bits: int) -> tuple[float, ...]:
    """Return the coefficients of a polynomial that reproduces `exp2_table(bits)`, for up to 20 bits.

    The polynomial at x = i % LEVELS_PER_BIT - LEVELS_PER_BIT / 2 is 2^(bits - (i % LEVELS_PER_BIT) / LEVELS_PER_BIT).
    That value over 2^(i // LEVELS_PER_BIT) rounds to entry i: `_SERIES` keeps all values as far from half integers as
    eight terms can (linear programming over all entries of 20 bits), so float64 finds the same integers however it
    rounds. No seven terms find them all; of a Taylor series it took ten.
    """
    return tuple(ldexp(term, bits - 20) for term in _SERIES)


@_kept
def softcap_table(cap: float) -> NDArray[np.int64]:
    """Return cap * tanh(i / LOGIT_GRID / cap) nats in units of 1/LEVELS_PER_BIT bit, rounded, as entry i: int64.

    The table ends at 9 cap, where tanh is 1 - 3e-8: larger logits take the last entry.
    """
    c = Decimal(cap)
    ratio = _fixed(_DECIMAL.exp(_DECIMAL.divide(Decimal(-2), _DECIMAL.multiply(c, Decimal(LOGIT_GRID)))))
    bits_per_nat = _DECIMAL.divide(Decimal(1), _DECIMAL.ln(Decimal(2)))
    top = _fixed(_DECIMAL.multiply(_DECIMAL.multiply(c, bits_per_nat), Decimal(LEVELS_PER_BIT)))
    table, power = [], _ONE
    for _ in range(int(9 * cap * LOGIT_GRID) + 1):
        value = top * (_ONE - power) // (_ONE + power)
        table.append((value + (_ONE >> 1)) >> 160)
        power = power * ratio >> 160
    return np.array(table, np.int64)


def _cos_sin(angle: Decimal) -> tuple[int, int]:
    """Return the cosine and sine of 0 <= angle <= 1 in units of 2^-160, by their Taylor series."""
    x = _fixed(angle)
    sums, term = [0, 0], _ONE
    for n in range(1, 42):
        sums[(n - 1) % 2] += term if (n - 1) % 4 < 2 else -term
        term = (term * x >> 160) // n
    return sums[0], sums[1]


@_kept
def rope_turns(base: float, dims: int, length: int, yarn: float = 1.0) -> NDArray[np.int64]:
    """Return the cosines and sines from which `codec.numerics.rotary` makes the rotary embedding of any position.

    Pair i of position p turns by p * base^(-2 i / dims). `yarn_slowing` slows the turn for a model that was trained on
    length / yarn positions.

    A row is the row before times the rotation of one step: a product of complex numbers of magnitude 1, whose errors
    add up and do not grow. The rotation of a step is within 2^-153 (42 terms of a series, rounded down), and each
    product adds 2^-158. So the farthest row, of a position below 2^34 (times the rotation of a first row), is within
    2^-118 before rounding.

    Args:
        base: of the geometric sequence of angles.
        dims: dimensions of a head that rotate.
        length: positions of the model's window.
        yarn: `length` over the window of training.

    Returns:
        int64 [2, rows, dims / 2] in units of 2^-TURN_BITS, rounded down. The first rows, `length` or TURN_ROWS of them,
        are the rotations of positions 0, 1, 2 .. Then each of TURN_LEVELS levels has TURN_DIGITS rows: the rotations of
        position 0, of the position that follows the rows of the level before, and of the multiples of that position.
    """
    angles = []
    log_base = _DECIMAL.ln(Decimal(base))
    for i in range(dims // 2):
        angle = _DECIMAL.exp(_DECIMAL.multiply(_DECIMAL.divide(Decimal(-2 * i), Decimal(dims)), log_base))
        angles.append(angle if yarn == 1 else _DECIMAL.multiply(angle, yarn_slowing(angle, length, yarn)))
    return turn_table(tuple(angles), max(length, TURN_ROWS))


@lru_cache
def turn_table(angles: tuple[Decimal, ...], low: int = TURN_ROWS) -> NDArray[np.int64]:
    """Compute `rope_turns` of pairs that turn by `angles` from one position to the next, with `low` first rows."""
    turns, shift = np.empty((2, low + TURN_LEVELS * TURN_DIGITS, len(angles)), np.int64), 160 - TURN_BITS
    for i, angle in enumerate(angles):
        step, row = _cos_sin(angle), 0
        for count in (low, *[TURN_DIGITS] * TURN_LEVELS):
            c, s = _ONE, 0
            for _ in range(count):
                turns[:, row, i] = c >> shift, s >> shift
                c, s = (c * step[0] - s * step[1]) >> 160, (s * step[0] + c * step[1]) >> 160
                row += 1
            step = c, s
    return turns


def yarn_slowing(angle: Decimal, length: int, yarn: float) -> Decimal:
    """Return YaRN's factor of a rotation by `angle` a position, from 1 to 1 / yarn (Peng et al. 2023, "NTK-by-parts").

    Pairs that turn YARN_TURNS[1] times or more in the window of training keep their rotation. Pairs that turn at most
    YARN_TURNS[0] times are stretched to the new window. Between the two the factor is linear. The paper's temperature
    is left out: query gains are learned.
    """
    few, many = (Decimal(turns) for turns in YARN_TURNS)
    trained = _DECIMAL.divide(Decimal(length), Decimal(yarn))
    turns = _DECIMAL.divide(_DECIMAL.multiply(trained, angle), _DECIMAL.multiply(Decimal(2), _PI))
    kept = min(Decimal(1), max(Decimal(0), _DECIMAL.divide(_DECIMAL.subtract(turns, few), many - few)))
    return _DECIMAL.add(kept, _DECIMAL.divide(_DECIMAL.subtract(Decimal(1), kept), Decimal(yarn)))


def sigmoid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 / (1 + e^-x) on the grid 2^-16, elementwise and the same on every machine."""
    one = Decimal(1)
    flat = []
    for value in values.ravel().tolist():
        x = Decimal(max(-40.0, min(40.0, value)))
        y = _DECIMAL.divide(one, _DECIMAL.add(one, _DECIMAL.exp(-x)))
        flat.append(int(_DECIMAL.multiply(y, Decimal(1 << 17)) + 1) // 2)
    return np.array(flat, np.float64).reshape(values.shape) / (1 << 16)


@_kept
def sigmoid_table() -> NDArray[np.int64]:
    """Return 1 / (1 + e^(-i / SIGMOID_GRID)) in units of 2^-SIGMOID_BITS, rounded, as entry i: int64 [SIGMOID_LENGTH].

    Larger arguments take the last entry; a negative argument takes 1 minus the entry of its magnitude.
    """
    ratio = _fixed(_DECIMAL.exp(_DECIMAL.divide(Decimal(-1), Decimal(SIGMOID_GRID))))
    table, power = [], _ONE
    for _ in range(SIGMOID_LENGTH):
        table.append(((_ONE << (SIGMOID_BITS + 1)) // (_ONE + power) + 1) >> 1)
        power = power * ratio >> 160
    return np.array(table, np.int64)
