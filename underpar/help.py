"""What `--help` and `--version` say. The help is kept in a file: to make it takes the modules of all commands."""

from pathlib import Path

from codec.cache import version as version_of

FILE = Path(__file__).with_name("help.txt")
"""`python -m tests.support.cli_page` writes the file."""


def version() -> str:
    """Return what `--version` says."""
    found = version_of("underpar")
    return f"underpar {found}" if found else "underpar, from a folder that is not installed"
