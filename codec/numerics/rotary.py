"""Rotations of any position of a document, however long, from tables of fixed size: the reference.

A position is a row of the first ones of `codec.numerics.tables.rope_turns` and a digit for each level, and its
rotation is the product of theirs, complex numbers of magnitude 1. Products are integers of 64 bits, so they are the
same on every machine. Where digits are 0 the factor is exactly 1: positions of the first rows, which a window never
leaves, have the rotations of the table.

A factor is rounded down to units of 2^-60, an error of at most 1.5 units in the plane; a product drops less than 2
units of each coordinate. Errors add up: 4 factors and 3 products are within 15 units, 2^-56, of the rotation. It is
rounded to ROPE_BITS then, to the nearest unless it lies within 2^-56 of the middle between two: for one in 2^40.
"""

from torch import Tensor

from codec.numerics.tables import TURN_DIGITS, TURN_LEVELS
from codec.numerics.widths import LIMB_BITS, ROPE_BITS, ROUND_HALF, ROUND_SHIFT


def rotations(turns: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) float64 [..., pairs] of int64 positions [...], by `codec.numerics.tables.rope_turns` on their
    device.
    """
    low = turns.shape[1] - TURN_LEVELS * TURN_DIGITS
    rest, (cos, sin) = positions // low, turns[:, positions % low]
    for level in range(TURN_LEVELS):
        cos, sin = _product(cos, sin, *turns[:, low + level * TURN_DIGITS + rest % TURN_DIGITS])
        rest = rest // TURN_DIGITS
    cos, sin = (((part + ROUND_HALF) >> ROUND_SHIFT).double() / (1 << ROPE_BITS) for part in (cos, sin))
    return cos, sin


def _product(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(a + bi) (c + di) in the units of the factors; what two low halves make is left out."""
    mask = (1 << LIMB_BITS) - 1
    a1, b1, c1, d1 = (part >> LIMB_BITS for part in (a, b, c, d))
    a0, b0, c0, d0 = (part & mask for part in (a, b, c, d))
    real = a1 * c1 - b1 * d1 + ((a1 * c0 + a0 * c1 - b1 * d0 - b0 * d1) >> LIMB_BITS)
    imaginary = a1 * d1 + b1 * c1 + ((a1 * d0 + a0 * d1 + b1 * c0 + b0 * c1) >> LIMB_BITS)
    return real, imaginary
