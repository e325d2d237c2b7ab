"""Define the command `audit`, which shows the verdict about a claim on one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import console

if TYPE_CHECKING:
    from rich.console import Group

    from eval.audit.audit import Audit

HELP = """Audit a claim: run its predictor as a decoder would, code the text, decode the text, compare.

CLAIM is a folder with a claim.toml, the code, and what the code reads:

\b
  claimed_bpb = 1.2345
  predictor = "predictor.py:make"  # make() returns the predictor
  files = \\["weights.npz"]          # all files it reads; their bytes count
  tokenizer = "sp1024.model"       # or "byte260"
  batch = 16                       # documents side by side
  \\[text]
  path = "val.jsonl"               # text, JSON Lines, parquet, shards
  documents = 120                  # the first 120; default: all
  # layout = "flat", window = 1024, targets = 65536: a stream in rows
  \\[scored]                         # how the author scored; keys: order,
  # tokens, ends, side_bits, documents, byte_table, text_bytes

A predictor has three methods, for B documents side by side:

\b
  reset(documents)  int64 [B]: the token before each document
  distribution()    float [B, V]: every row sums to 1
  update(tokens)    int64 [B]: what came; -1 where a document has ended

A fourth method, peek(documents), is for scripts that see the text (teacher forcing). The docstring of
eval.audit.predictor defines all methods and keys; that module has adapters for PyTorch modules and plain functions.

The verdict "holds as far as checked" means that a condition could not be checked: the claim gives only shards, the
machine cannot isolate a process, or code, model and tokenizer are larger than the text under xz and could hold the
text. In the last case pass --fresh.

Exit status: 0 if the claim holds, 1 if the claim is refuted or a condition could not be checked, 2 if the claim cannot
be read.
"""


def audit(
    claim: Annotated[Path, typer.Argument(help="A claim.toml, or the folder it is in.")],
    fresh: Annotated[
        Path | None, typer.Option(help="Text of the same source, unseen by the author, that must score alike.")
    ] = None,
    margin: Annotated[float, typer.Option(min=0, help="Bits per byte that --fresh may score above the claim.")] = 0.05,
    seconds: Annotated[float, typer.Option(min=1, help="Longest run of the predictor, in seconds.")] = 3600.0,
    memory: Annotated[float, typer.Option(min=0.1, help="Largest address space of the predictor, in GiB.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Audit a claim."""
    from eval.audit.audit import audit as run
    from eval.audit.sandbox import Limits

    limits = Limits(min(Limits.call_seconds, seconds), seconds, int(memory * 2**30))
    found = run(claim, limits, fresh, margin)
    console.emit(found.to_json(), as_json, lambda: page(found))
    if found.failed:
        raise console.CheckFailed(f"the claim is refuted: {', '.join(found.failed)}")
    if found.unchecked:
        raise console.CheckFailed(f"the claim holds as far as checked; not checked: {', '.join(found.unchecked)}")


audit.__doc__ = HELP


def page(found: "Audit") -> "Group":
    """Render the verdict for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    color = "red" if found.failed else "yellow" if found.unchecked else "green"
    head = Text.assemble(f"{found.name}: the claim ", ("is refuted" if found.failed else found.verdict, color))
    scores = Table.grid(padding=(0, 2))
    rows = [("claimed", found.claimed_bpb, "")]
    if found.honest_bpb is not None:
        rows += [
            ("coded", found.honest_bpb, f"{found.coded_bytes:,} bytes for {found.text_bytes:,} of text"),
            ("difference", found.honest_bpb - found.claimed_bpb, ""),
            ("as the author scores", found.scored_bpb or 0.0, "run here"),
        ]
    if found.fresh_bpb is not None:
        rows.append(("a fresh text", found.fresh_bpb, ""))
    for name, value, note in rows:
        scores.add_row(name, f"{value:.6f}", note)
    lines = Table(show_header=False, box=None, padding=(0, 1))
    marks = {False: Text("fails", "red"), None: Text("unchecked", "yellow"), True: Text("ok", "green")}
    for condition in sorted(found.conditions, key=lambda c: list(marks).index(c.ok)):
        lines.add_row(marks[condition.ok], condition.name, Text(condition.evidence))
    return Group(head, Text("bits per byte", "dim"), scores, Text(), lines, Text(f"{found.seconds:.1f} seconds", "dim"))
