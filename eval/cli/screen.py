"""Define the commands `screen`, which tests variants of a training recipe, and `rank`, which compares two screens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec import console
from codec.files import write_files
from eval.score.windows import Policy
from trainer.cli.train import INTERRUPTED

if TYPE_CHECKING:
    from eval.screen.screen import Outcome
    from eval.screen.tables import Effect


def screen(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships (proxy, small, ...) or a TOML file.")],
    variants: Annotated[str, typer.Argument(help="Variants that ship (screen) or a TOML file with a table for each.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the results; the same folder continues a stopped screen.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For all runs: train.seconds=60.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    base_seeds: Annotated[int | None, typer.Option(min=1, help="Runs of the recipe itself; default: --seeds.")] = None,
    only: Annotated[str, typer.Option(help="Names of the variants to run, separated by commas; default: all.")] = "",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: one for each GPU. More runs share GPUs.")
    ] = None,
    policy: Annotated[Policy, typer.Option(help="The score that is tested: flat or document.")] = Policy.FLAT,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train variants of a recipe over several seeds and test the effect of each: CSV, JSON, Markdown and pictures.

    The results include runs that earlier calls left in the folder: for example all variants with one seed first, then
    some variants with three.
    """
    from codec.errors import CodecError
    from eval import figures as plots
    from eval.screen import plots as screen_plots
    from eval.screen import tables as screen_tables
    from eval.screen.screen import devices, make_plan, make_slots, run_plan, scored_runs, with_earlier
    from eval.screen.variants import BASE, load_variants
    from trainer.recipe import load_recipe

    wanted = console.listed(only, str)
    held = {variant for variant, _ in scored_runs(out)}
    known = load_variants(variants, load_recipe(recipe, overrides or []), wanted, held)
    chosen = {name: varied for name, varied in known.items() if not wanted or name in (BASE, *wanted)}
    if policy is Policy.SLIDING:
        raise CodecError("policy sliding takes too long for every run; choose flat or document")
    plan = make_plan(chosen, seeds, base_seeds)
    slots = make_slots(plan, devices(), jobs)
    shown, strangers = with_earlier(plan, known, out)

    def keep(outcome: "Outcome") -> None:
        write_files(out, screen_tables.files(outcome, policy))

    with console.progress("training", len(plan), "runs") as advance:
        outcome = run_plan(plan, out, slots, advance, keep, shown)
    found = screen_tables.effects(outcome.results, policy)
    files = screen_tables.files(outcome, policy)
    files |= plots.rendered(screen_plots.pictures(outcome.results, found))
    write_files(out, files)
    result = {**screen_tables.summary(outcome, policy), "files": [str(out / name) for name in files]}
    console.emit(result, as_json, lambda: _readable(found))
    if strangers:
        left_out = f"left out, as no runs of the present {variants} on the present {recipe}: {', '.join(strangers)}"
        console.notes.print(f"underpar: {left_out}")
    if outcome.interrupted:
        left = len(shown) - len(outcome.results)  # all runs of earlier calls are scored
        console.fail(f"interrupted with {left} of {len(plan)} runs to go; repeat the command to continue", INTERRUPTED)
    if outcome.failed:
        raise console.CheckFailed(f"{len(outcome.failed)} of {len(plan)} runs failed: {', '.join(outcome.failed)}")


def rank(
    first: Annotated[Path, typer.Argument(help="Folder of a screen of a short recipe.")],
    second: Annotated[
        Path, typer.Argument(help="Folder of a screen of the long recipe that the short one stands for.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder for ranks.json, ranks.md and ranks.svg.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare how two screens rank their variants: Spearman's rank correlation, a table and a picture."""
    import json

    from rich.console import Group

    from eval import figures as plots
    from eval.screen import plots as screen_plots
    from eval.screen import ranks as screen_ranks

    found = screen_ranks.rank(first, second)
    result = screen_ranks.as_json(found)
    files = {
        "ranks.json": json.dumps(result, indent=1).encode(),
        "ranks.md": screen_ranks.as_markdown(found).encode(),
        "ranks.svg": plots.svg(screen_plots.ranks(found)),
    }
    write_files(out, files)
    rows = [screen_ranks.cells(row) for row in found.ranked]
    table = console.table(screen_ranks.heads(found), rows)
    console.emit(result, as_json, lambda: Group(table, screen_ranks.verdict(found)))


def _readable(found: Sequence["Effect"]) -> Any:
    """Render a table for people: the variants, best first."""
    from eval.screen.tables import cells

    rows = [
        [*cells(effect), f"{effect.train_tokens / 1e6:.1f} M", f"{effect.parameters / 1e6:.2f} M"]
        for effect in sorted(found, key=lambda effect: effect.difference)
    ]
    return console.table(["variant", "runs", "bpb", "difference", "p", "Holm", "tokens", "weights"], rows)
