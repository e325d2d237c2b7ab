"""Define the commands of this room; the only folder of it that imports typer."""

COMMANDS = {
    "import": "eval.cli.score:import_model",
    "audit": "eval.cli.audit:audit",
    "bpb": "eval.cli.score:bpb",
    "prove": "eval.cli.score:prove",
    "report": "eval.cli.score:report",
    "ablate": "eval.cli.ablate:ablate",
    "agree": "eval.cli.agree:agree",
    "bench": "eval.cli.bench:bench",
    "compare": "eval.cli.compare:compare",
    "screen": "eval.cli.screen:screen",
    "rank": "eval.cli.screen:rank",
}
"""Places of the function of each command: a module is imported when its command runs."""
