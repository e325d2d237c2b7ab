"""Define the command `ablate`, which sweeps weight codecs and their peers over one checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codec import console

RATES = (2.5, 3.0, 3.5)
"""Bits a weight that are tried if the call names no units, rates or budgets."""


def ablate(
    model: Annotated[Path, typer.Argument(help="A run folder, or any .safetensors.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the results; the same folder continues a stopped sweep.")
    ],
    docs: Annotated[Path | None, typer.Option(help="Validation text; required for a model that can run.")] = None,
    strategies: Annotated[str | None, typer.Option(help="Names, separated by commas; default: all.")] = None,
    units: Annotated[str, typer.Option(help="Step sizes in a strategy's own unit, separated by commas.")] = "",
    rates: Annotated[str, typer.Option(help="Bits a weight to aim at, separated by commas.")] = "",
    budgets: Annotated[str, typer.Option(help="Sizes to aim at in bytes, separated by commas.")] = "",
    peers: Annotated[str | None, typer.Option(help="Names, separated by commas; default: all.")] = None,
    scales: Annotated[str, typer.Option(help="Factors of the peers' step sizes.")] = "0.8,1,1.3",
    embeddings: Annotated[str, typer.Option(help="Further factors of the embedding's step size.")] = "1,0.45",
    packs: Annotated[
        str, typer.Option(help="Packs of this model to measure, too: NAME=FILE, separated by commas.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Approximate number of tokens of text to use.")] = 200_000,
    processes: Annotated[int | None, typer.Option(min=1, help="Workers; default: one for each core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure weight codecs and peers on one checkpoint: bytes against KL and bpb, as CSV, JSON and pictures."""
    import json
    import os

    from codec.errors import CodecError
    from codec.files import write_files
    from codec.quantization.strategies import STRATEGIES
    from eval import figures as plots
    from eval.ablate import plots as ablate_plots
    from eval.ablate import tables as ablate_tables
    from eval.ablate.ablate import make_plan, run_plan
    from eval.ablate.peers import PEERS
    from eval.ablate.subject import load_subject
    from eval.tables import as_csv

    subject = load_subject(model)
    chosen_budgets = console.listed(budgets, int)
    chosen_units, chosen_rates = console.listed(units, float), console.listed(rates, float)
    if not (chosen_units or chosen_rates or chosen_budgets):
        chosen_rates = list(RATES)
    plan = make_plan(
        list(STRATEGIES) if strategies is None else console.listed(strategies, str),
        chosen_units,
        chosen_rates,
        chosen_budgets,
        list(PEERS) if peers is None else console.listed(peers, str),
        console.listed(scales, float),
        console.listed(embeddings, float),
        [_named_pack(pair) for pair in console.listed(packs, str)],
    )
    if not plan:
        raise CodecError("nothing to measure; name strategies or peers")
    ruler = None
    if subject.config and subject.tokenizer:
        if docs is None:
            raise CodecError("the model can be run: pass a text with --docs to measure its loss")
        ruler = _ruler(subject, docs, tokens)
    with console.progress("measuring", len(plan), "points") as advance:
        outcome = run_plan(model, plan, out, ruler, processes or os.cpu_count() or 1, advance)
    anchor = ablate_tables.reference(outcome.points)
    sizes = [*chosen_budgets, *([anchor.bytes] if anchor else [])]
    result = ablate_tables.summary(subject, ruler, outcome, sizes)
    files = {
        "results.json": json.dumps(result, indent=1).encode(),
        "points.csv": as_csv(result["points"]).encode(),
        "equal_distortion.csv": as_csv(result["equal_distortion"]).encode(),
        "equal_bytes.csv": as_csv(result["equal_bytes"]).encode(),
    }
    files |= plots.rendered(ablate_plots.pictures(outcome.points))
    write_files(out, files)
    console.emit({**result, "files": [str(out / name) for name in files]}, as_json, lambda: _readable(result))
    if outcome.failed:
        raise console.CheckFailed(f"{len(outcome.failed)} of {len(plan)} points failed: {', '.join(outcome.failed)}")


def _named_pack(pair: str) -> tuple[str, Path]:
    """Split NAME=FILE. Raises CodecError for anything else."""
    from codec.errors import CodecError

    name, equals, path = pair.partition("=")
    if not equals or not Path(path).is_file():
        raise CodecError(f"packs: {pair!r}, expected NAME=FILE with a file that exists")
    return name, Path(path)


def _ruler(subject: Any, docs: Path, tokens: int) -> Any:
    """Load the float model and the text, on a GPU if this machine has one."""
    import torch

    from eval.ablate.divergence import Ruler
    from eval.score.streams import stream_bytes, token_stream
    from trainer.model.build import float_network

    window = subject.config.window
    with console.progress("reading", stream_bytes(docs), "bytes") as advance:
        stream = token_stream(docs, subject.tokenizer, max(tokens, 2 * window) + window + 1, advance)
    network = float_network(subject.config)
    network.load_state_dict(subject.state)
    return Ruler(network.to("cuda" if torch.cuda.is_available() else "cpu").eval(), subject.tokenizer, stream, tokens)


def _readable(result: dict[str, Any]) -> Any:
    """Render tables for people: the points, and the bytes at equal distortion to the documented peers."""
    from rich.console import Group

    measured = "kl" if any(p["kl"] is not None for p in result["points"]) else "relative_error"
    fields = ["bytes", "bits_per_weight", measured, "tax", "encode_seconds", "decode_seconds"]
    points = [(_title(point), *(point[name] for name in fields)) for point in result["points"]]
    first = console.table(["point", *fields], points)
    ratios = [
        (f"{r['strategy']} / {r['peer']}", r["measure"], r["ratio"], r["ratio_error"], r["extrapolated"])
        for r in result["equal_distortion"]
        if r["reference"]
    ]
    second = console.table(["bytes at equal distortion", "measure", "ratio", "±", "extrapolated"], ratios)
    return Group(first, second, *(f"skipped {name}: {why}" for name, why in result["skipped"].items()))


def _title(point: dict[str, Any]) -> str:
    settings = [
        f"{k} {console.readable(point[k])}" for k in ("unit", "rate", "budget", "scale", "embedding") if point[k]
    ]
    return f"{point['name']} ({', '.join(settings)})"
