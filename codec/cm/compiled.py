"""How the functions of this folder are compiled."""

from codec.compiled import compiler

compiled = compiler(nogil=True, _nrt=False)
"""Compile without counting references: callers hold all arrays, and these functions make none.

Counting took half of the time of a bit and nine tenths of compiling.
"""
