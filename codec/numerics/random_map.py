"""Fixed random maps: sign matrices that a decoder regenerates from their numbers, by integer arithmetic alone."""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # the constants of SplitMix64
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def signs(number: int, rows: int, columns: int) -> NDArray[np.int8]:
    """Return the signs of map `number`, -1 or 1, int8 [rows, columns].

    Entry i in row order is bit i % 64 of word i / 64 + 2^40 * number of the generator SplitMix64 started at 0 (Steele,
    Lea and Flood 2014). A set bit means 1.
    """
    words = np.arange(-(-rows * columns // 64), dtype=np.uint64) + np.uint64((number << 40) + 1)
    mixed = words * np.uint64(_GOLDEN)
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    bits = np.unpackbits(mixed.astype("<u8").view(np.uint8), count=rows * columns, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).reshape(rows, columns)
