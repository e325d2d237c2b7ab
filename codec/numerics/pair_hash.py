"""Hash pairs of tokens, of arrays of any library."""

from typing import Any


def pair_hash(tokens: Any, before: Any, rows: int) -> Any:
    """Return the rows of a table for pairs (t, p) of integers: (36313 t XOR 27191 p) mod rows, the challenge's
    function.
    """
    return ((36313 * tokens) ^ (27191 * before)) % rows
