"""Define the functions that all parts of context mixing share, as constant tables of integers.

Logarithmic odds, ln(p / (1 - p)), are in units of 1/256 nat from -LIMIT to LIMIT (`codec.entropy.mixing`).
Probabilities of a one are in units of 2^-16 unless said otherwise.
"""

import numpy as np

from codec.entropy.mixing import LIMIT, tables

SQUASH = tables().squash.astype(np.int32)
"""Probability, 1 to 2^16 - 1, of odds x at index x + LIMIT."""

STRETCH = tables().stretch[8::16].astype(np.int32)
"""Odds of probability 16 i + 8 at index i: 4,096 entries, which fit a first-level cache."""

STRETCH_FINE = tables().stretch.astype(np.int32)
"""Odds of every probability."""

RECIPROCALS = np.array([(1 << 17) // (2 * n + 3) for n in range(1024)], np.int32)
"""2^16 / (n + 1.5) at index n: how far a probability moves that has seen n decisions."""

__all__ = ["LIMIT", "RECIPROCALS", "SQUASH", "STRETCH", "STRETCH_FINE"]
