"""What `--help` says of all commands, kept in a file: to make it takes the modules of all commands."""

from pathlib import Path

FILE = Path(__file__).with_name("help.txt")
"""`python -m tests.support.cli_page` writes the file."""
