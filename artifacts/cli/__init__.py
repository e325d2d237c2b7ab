"""Define the commands of this room; the only folder of it that imports typer."""

COMMANDS = {
    "ledger": "artifacts.cli.submit:ledger",
    "submit": "artifacts.cli.submit:submit",
    "hub": "artifacts.cli.share:hub",
}
"""Places of the function, or the group, of each command: a module is imported when its command runs."""
