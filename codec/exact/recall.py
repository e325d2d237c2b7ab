"""Define recall, the match model: tokens that followed similar contexts earlier in the document become likelier.

A network sees a window, and copies imperfectly. The match model looks back at the last HISTORY positions of the
document. A token of the vocabulary is a candidate if the document has the token right after one of these positions. A
candidate has two measures:

- The *agreement* is a mask that compares the last tokens at an earlier position with the last tokens at the present
  position. A bit is 1 where the tokens are equal; the newest tokens have the highest bit.
- The *similarity* is the product of the keys of both positions. A key is the network's last hidden state, without its
  mean over the document, as small integers.

Where a candidate follows several positions, each measure is the maximum over these positions. Tables, fitted to text,
say what to add to the candidate's level: the row depends on a measure, the column on the candidate's probability under
the network. Tables, masks, levels and keys are integers, and all are functions of tokens that the decoder has. The
decoder therefore raises the same levels as the encoder.

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
"""The positions of a document that the match model looks back at."""

UNIT = LEVELS_PER_BIT // 16
"""The unit of a table's entries in levels: 1/16 bit."""

PATTERN_BITS, REST_BITS = 4, 12
"""The bits of a mask: the newest select a row by their pattern, the older ones by the number of equal tokens."""

SURPRISALS = (1, 2, 3, 4, 6, 8, 11)
"""The ends of the tables' columns, in bits: a token of probability over 2^-1 is in the first column; the last column
has no end."""

STEPS = 10
"""Rows for similarities, as cosines, from 0 to 1. One more row is for cosines below 0, another for
cosines of 1 or more."""

KEY_LIMIT, KEY_FRACTION = 127, 4
"""The largest integer and the fractional bits of a key, whose row has unit mean square."""

HIDDEN_FRACTION = 9
"""The fractional bits of hidden states, rows of unit mean square, from which the document's mean is subtracted."""

SHAPES = {
    "patterns": (1 << PATTERN_BITS, len(SURPRISALS) + 1),
    "rest": (REST_BITS + 1, len(SURPRISALS) + 1),
    "similarities": (STEPS + 2, len(SURPRISALS) + 1),
}


@dataclass(frozen=True)
class Recall:
    """Tables of additions to levels: 8-bit integers in UNITs, by row (see `Memory.rows`) and column (SURPRISALS)."""

    patterns: Sequence[Sequence[int]]
    rest: Sequence[Sequence[int]]
    similarities: Sequence[Sequence[int]]

    @cached_property
    def tables(self) -> NDArray[np.int32]:
        """Return the rows of all tables, one table below the other, int32 [rows, columns]."""
        return np.concatenate([getattr(self, field.name) for field in fields(self)]).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """Return the tables as JSON values, which `read_recall` reads."""
        return asdict(self)


def read_recall(values: Any) -> Recall:
    """Read the tables from a pack's header.

    Raises:
        FormatError: the values are no tables of 8-bit integers of these shapes.
    """
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
