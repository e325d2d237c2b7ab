"""Define the commands of this room; the only folder of it that imports typer."""

import typer

from eval.cli import ablate, agree, audit, bench, compare, score, screen


def register(app: typer.Typer) -> None:
    """Add the commands of this room to `app`."""
    app.command("import")(score.import_model)
    app.command("audit", help=audit.HELP)(audit.audit)
    for command in (
        score.bpb,
        score.prove,
        score.report,
        ablate.ablate,
        agree.agree,
        bench.bench,
        compare.compare,
        screen.screen,
        screen.rank,
    ):
        app.command()(command)
