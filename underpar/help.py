"""Give the texts of `--help` and `--version`; that of the help is in a file, since making it takes all commands."""

from pathlib import Path

from codec.cache import version as version_of

FILE = Path(__file__).with_name("help.txt")
"""`python -m tests.support.cli_page` writes the file."""


def version() -> str:
    """Return what `--version` says."""
    found = version_of("underpar")
    return f"underpar {found}" if found else "underpar, from a folder that is not installed"
