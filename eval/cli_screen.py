"""The command that tests variants of a training recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codec import console
from codec.windows import Policy


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("screen")(screen)


def screen(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships (proxy, small, ...) or a TOML file.")],
    variants: Annotated[str, typer.Argument(help="Variants that ship (screen) or a TOML file, a table for each.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the results; a stopped screen goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For all runs: train.seconds=60.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    only: Annotated[str, typer.Option(help="Names of the variants to run, separated by commas; default: all.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one on each GPU, or one.")] = None,
    policy: Annotated[Policy, typer.Option(help="The score that is tested: flat or document.")] = Policy.FLAT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train variants of a recipe over several seeds and test what each changes: CSV, JSON and pictures."""
    import json

    from codec.errors import CodecError
    from codec.files import atomic_write
    from eval import plots, screen_plots, screen_tables
    from eval.ablate_tables import as_csv
    from eval.screen import devices, make_plan, run_plan
    from trainer.recipe import load_recipe
    from trainer.variants import BASE, load_variants

    chosen = load_variants(variants, load_recipe(recipe, overrides or []))
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in chosen]:
        raise CodecError(f"variant {unknown[0]!r}: expected some of {', '.join(chosen)}")
    if wanted:
        chosen = {name: one for name, one in chosen.items() if name == BASE or name in wanted}
    if policy is Policy.SLIDING:
        raise CodecError("policy sliding takes too long for every run; choose flat or document")
    places = devices()
    if jobs and jobs > len(places):
        raise CodecError(f"{jobs} runs at a time on {len(places)} devices; times would say nothing; pass fewer --jobs")
    plan = make_plan(chosen, seeds)
    with console.progress("training", len(plan), "runs") as advance:
        outcome = run_plan(plan, out, places[:jobs], advance)
    result = screen_tables.summary(outcome, policy)
    files = {
        "results.json": json.dumps(result, indent=1).encode(),
        "variants.csv": as_csv(result["variants"]).encode(),
        "runs.csv": as_csv(result["runs"]).encode(),
    }
    found = screen_tables.effects(outcome.results, policy)
    for name, figure in screen_plots.pictures(outcome.results, found).items():
        files[f"{name}.svg"], files[f"{name}.png"] = plots.svg(figure), plots.png(figure)
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)
    console.emit({**result, "files": [str(out / name) for name in files]}, as_json, lambda: _readable(result))
    if outcome.failed:
        raise console.CheckFailed(f"{len(outcome.failed)} of {len(plan)} runs failed: {', '.join(outcome.failed)}")


def _readable(result: dict[str, Any]) -> Any:
    """For people: the variants, best first."""

    def shown(form: str, value: float | None) -> str:
        return "" if value is None else form.format(value)

    rows = [
        (
            v["variant"],
            v["runs"],
            f"{v['bpb']:.5f}",
            f"{v['difference']:+.5f}" + shown(" ± {:.5f}", v["difference_error"]),
            shown("{:.2g}", v["p"]),
            shown("{:.2g}", v["p_holm"]),
            f"{v['train_tokens'] / 1e6:.1f} M",
            f"{v['parameters'] / 1e6:.2f} M",
        )
        for v in sorted(result["variants"], key=lambda effect: effect["difference"])
    ]
    return console.table(["variant", "runs", "bpb", "difference", "p", "Holm", "tokens", "weights"], rows)
