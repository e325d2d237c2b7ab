"""`python -m underpar`: the command line without an installed script."""

from underpar.cli import run

run()
