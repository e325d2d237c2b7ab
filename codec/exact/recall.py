"""Recall: tokens that a document has had in contexts like the present one become likelier, by tables learned from text.

A network sees a window, and copies imperfectly. Recall looks back at the last HISTORY tokens of the document. For each
token that followed one of them it takes two measures, each the greatest over all places where it did: the *agreement*,
a mask of which of the last tokens there and here are the same, the newest in the highest bit; and the *similarity* of
the network's last hidden state there and here. Both, with how probable the model holds the token, are looked up in
tables of what is added to its level. Tables, masks, levels and the keys of hidden states are integers, and all are
functions of tokens that a decoder has: it repeats what the encoder did.

Ancestors: the match models and adaptive probability maps of PAQ (Mahoney 2005), and the neural cache of Grave, Joulin
and Usunier (2016), whose similarities are exponentiated instead of looked up.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.numerics.tables import LEVELS_PER_BIT

HISTORY = 8192
"""Tokens of a document that are looked back at."""

UNIT = LEVELS_PER_BIT // 16
"""Levels that an entry of a table counts: 1/16 bit."""

PATTERN_BITS, REST_BITS = 4, 12
"""Of a mask: those whose pattern counts, and the older ones, of which the number of equal tokens counts."""

SURPRISALS = (1, 2, 3, 4, 6, 8, 11)
"""Where the tables' columns end, in bits: a token of probability over 2^-1 is in the first, the last has no end."""

STEPS = 10
"""Rows that a similarity, a cosine, is worth; those below 0 share two rows."""

KEY_LIMIT, KEY_FRACTION = 127, 4
"""Of keys, rows of unit mean square: the largest integer, and the fractional bits."""

HIDDEN_FRACTION = 9
"""Fractional bits of hidden states, rows of unit mean square, when their mean is taken off."""

SHAPES = {
    "patterns": (1 << PATTERN_BITS, len(SURPRISALS) + 1),
    "rest": (REST_BITS + 1, len(SURPRISALS) + 1),
    "similarities": (STEPS + 2, len(SURPRISALS) + 1),
}


@dataclass(frozen=True)
class Recall:
    """What is added to levels, in UNITs: integers of 8 bits by row (see `rows`) and by column (SURPRISALS)."""

    patterns: Sequence[Sequence[int]]
    rest: Sequence[Sequence[int]]
    similarities: Sequence[Sequence[int]]

    @cached_property
    def tables(self) -> NDArray[np.int32]:
        """All rows, one table below the other."""
        return np.concatenate([getattr(self, field.name) for field in fields(self)]).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As `read_recall` reads it."""
        return asdict(self)


def read_recall(values: Any) -> Recall:
    """The tables of a pack's header. Raises FormatError for anything else."""
    good = isinstance(values, dict) and values.keys() == SHAPES.keys()
    for name, (rows, columns) in SHAPES.items() if good else ():
        table = values[name]
        good = good and isinstance(table, list) and len(table) == rows
        for row in table if good else ():
            good = good and isinstance(row, list) and len(row) == columns
            good = good and all(type(n) is int and -128 <= n <= 127 for n in row)
    if not good:
        raise FormatError(f"pack: recall is no tables of 8-bit integers of shapes {SHAPES}; fit them again")
    return Recall(**values)
