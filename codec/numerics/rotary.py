"""Rotary embedding of any position of a document, however long, from tables of fixed size: the reference.

A position is written as a row of the first part of `codec.numerics.tables.rope_turns` and one digit for each level. Its
rotation is the product of the rotations of that row and those digits, complex numbers of magnitude 1. Products are
integers of 64 bits, so they are the same on every machine. A digit of 0 has the factor 1 exactly: the positions of the
first rows, which a training window never leaves, have the rotations of the table.

A factor is rounded down to units of 2^-60, an error of at most 1.5 units in the plane. A product drops less than 2
units of each coordinate. The errors add up: the product of 4 factors is within 15 units, 2^-56, of the rotation. The
product is then rounded to ROPE_BITS; the result is the nearest value unless the product lies within 2^-56 of the middle
between two values, which happens to 1 of 2^40.
"""

from torch import Tensor

from codec.numerics.tables import TURN_DIGITS, TURN_LEVELS
from codec.numerics.widths import LIMB_BITS, ROPE_BITS, ROUND_HALF, ROUND_SHIFT


def rotations(turns: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cos, sin), float64 [..., pairs] each, of int64 positions [...].

    Args:
        turns: `codec.numerics.tables.rope_turns` on the device of the positions.
        positions: any integers from 0 to 2^34 - 1.
    """
    low = turns.shape[1] - TURN_LEVELS * TURN_DIGITS
    rest, (cos, sin) = positions // low, turns[:, positions % low]
    for level in range(TURN_LEVELS):
        cos, sin = _product(cos, sin, *turns[:, low + level * TURN_DIGITS + rest % TURN_DIGITS])
        rest = rest // TURN_DIGITS
    cos, sin = (((part + ROUND_HALF) >> ROUND_SHIFT).double() / (1 << ROPE_BITS) for part in (cos, sin))
    return cos, sin


def _product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a + bi) (c + di) in the units of the factors, without the product of the two low halves."""
    mask = (1 << LIMB_BITS) - 1
    a1, b1, c1, d1 = (part >> LIMB_BITS for part in (a, b, c, d))
    a0, b0, c0, d0 = (part & mask for part in (a, b, c, d))
    real = a1 * c1 - b1 * d1 + ((a1 * c0 + a0 * c1 - b1 * d0 - b0 * d1) >> LIMB_BITS)
    imaginary = a1 * d1 + b1 * c1 + ((a1 * d0 + a0 * d1 + b1 * c0 + b0 * c1) >> LIMB_BITS)
    return real, imaginary
