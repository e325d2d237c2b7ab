"""Define the widths of the integers and fractions that every implementation of exact inference repeats."""

ARITHMETIC = 1
"""Version of the arithmetic: any change of an integer that `codec.exact.model` produces bumps it."""

EXACT = float(1 << 53)
"""Integers of at most this size are exact in float64."""

SNAP_BITS = 15
"""Width of a snapped operand, sign included: |X| <= 2^14 (a proof's `bpb_exact` shows what it costs)."""

OPERAND = 1 << (SNAP_BITS - 1)
"""Largest absolute value of a snapped operand."""

LARGEST_WEIGHT = 127 * 256 + 127
"""Largest absolute value of a matrix's integer that compiled kernels multiply: two signed limbs of 8 bits."""

NORM_EPSILON = float.fromhex("0x1p-23")
"""Added to mean squares: the float32 epsilon, as in the challenge's RMS norm."""

SOFTMAX_BITS = 20
"""Fractional bits of attention weights before normalisation (measured on a prototype: 16 or more are needed)."""

LARGEST_SCORE = float(1 << 29)
"""Levels of scores saturate there where queries have steps of their own, 131,072 bits from 0."""

LARGEST_LEVEL = 1 << 28
"""Logits without a softcap saturate there, 65,536 bits from 0."""

FEW, FEW_BITS, MANY_BITS = 1 << 14, 24, 27
"""Frequencies of up to FEW symbols sum to 2^FEW_BITS, those of more to 2^MANY_BITS."""

PRODUCT_BITS = 62
"""Width of the products that a cumulative frequency is made of."""

TURN_BITS = 60
"""Fractional bits of the rotations from which others are made."""

ROPE_BITS = 15
"""Fractional bits of the cosines and sines (measured with no loss on a prototype)."""

LIMB_BITS = TURN_BITS // 2
"""Width of the halves in which factors of rotations are multiplied: sums of four products stay within 2^62."""

ROUND_SHIFT = TURN_BITS - ROPE_BITS
ROUND_HALF = 1 << (ROUND_SHIFT - 1)
"""The shift of a rotation that rounds to ROPE_BITS, and the summand before the shift."""


def total_bits(vocabulary: int) -> int:
    """Return the power of two that the frequencies of so many symbols sum to.

    >>> total_bits(8192), total_bits(49_152)
    (24, 27)
    """
    return FEW_BITS if vocabulary <= FEW else MANY_BITS
