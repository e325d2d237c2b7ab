"""How the functions of this folder are compiled."""

from functools import partial

from numba import njit

compiled = partial(njit, cache=True, nogil=True, _nrt=False)
"""Compile without counting references: callers hold all arrays, and these functions make none.

Counting took half of the time of a bit and nine tenths of compiling.
"""
