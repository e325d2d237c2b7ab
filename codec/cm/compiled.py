"""Compile the functions of this folder."""

from codec.compiled import compiler

compiled = compiler(nogil=True, _nrt=False)
"""Compile without counting references: callers hold all arrays, and the functions of this folder make none.

Counting took half of the time of a bit and nine tenths of compiling."""
