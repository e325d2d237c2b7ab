"""Tables as text: Markdown for people, CSV for programs."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose first column is text and whose other columns are right-aligned."""
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, marks, *rows))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of the same fields as CSV, field names in the first line; "" without rows."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
