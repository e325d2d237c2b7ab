"""Define the commands of submissions: `ledger` and `submit`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codec.console import CheckFailed, emit, table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ledger(
    path: Annotated[Path, typer.Argument(help="A pack or a submission folder.")],
    validation: Annotated[
        Path | None, typer.Option(help="Validation text, for comparison with training-only files.")
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Decode a submission's text without its documents, which then do not count."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Count the bytes toward 16,000,000 under the challenge's rules and under strict rules.

    To a pack belongs the source that decodes with it, minified; a submission has scripts and training's source, too.
    """
    from dataclasses import asdict

    from artifacts.submission import ledger as counting

    found = counting.ledger(path, evaluate)
    result: dict[str, Any] = found.to_json()
    shared = 0
    if validation:
        repeats = _overlaps(path, found, validation)
        shared = sum(repeat.shared for repeat in repeats.values())
        result["overlap"] = {name: asdict(repeat) for name, repeat in repeats.items()}
    rows = [
        (total.rules, total.bytes, total.peak_bytes, {True: "yes", False: "no", None: "unsettled"}[total.fits])
        for total in found.totals
    ]
    shown = table(["rules", "bytes", "if all questions are answered yes", "fits in 16,000,000"], rows)
    questions = {(q.question, q.bytes) for total in found.totals for q in total.unsettled}
    shown.caption = "; ".join(
        [f"{role} {size:,}" for role, size in found.by_role().items()]
        + ([found.evaluation] if found.evaluation else [])
        + [f"Unsettled: {question} ({size:,} bytes)" for question, size in sorted(questions)]
    )
    emit(result, as_json, lambda: shown)
    if shared:
        raise CheckFailed(f"{shared} runs of 13 words of training-only files are in the validation text")
    if any(total.fits is False for total in found.totals):
        raise CheckFailed(f"more than {counting.LIMIT:,} bytes count")


def _overlaps(folder: Path, found: Any, validation: Path) -> dict[str, Any]:
    """Return the overlap of each training-only file in `folder` with the validation text."""
    from artifacts.submission.overlap import overlap
    from trainer.data.documents import read_documents

    files = [entry.path for entry in found.entries if entry.role == "training"]
    return {name: overlap(read_documents(folder / name), read_documents(validation)) for name in files}


def submit(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, one for each seed, each with its proof.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make.")],
    name: Annotated[str, typer.Option(help="Name of the submission.")],
    author: Annotated[str, typer.Option(help="Name of the author.")],
    github: Annotated[str, typer.Option(help="The author's GitHub name.")],
    record: Annotated[
        Path | None, typer.Option(help='A record to claim: {"name", "bpb", "bytes_per_token", "text_bytes"} as JSON.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a submission folder that reproduces its score by itself; claim a record only if the figures beat it."""
    from artifacts.submission.significance import load_record
    from artifacts.submission.submission import Author
    from artifacts.submission.submission import submit as write

    claimed = load_record(record) if record else None
    emit({"folder": str(output), **write(runs, output, name, Author(author, github), claimed)}, as_json)
