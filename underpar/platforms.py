"""Say once on a machine that no bytes were compared on its kind."""

import os
import sys
from contextlib import suppress

from codec import console

TESTED = {("linux", "x86_64"), ("linux", "aarch64")}
"""Systems and processors on which the bytes of packs and archives were compared (docs/results/trust.md), as
`sys.platform` and `uname -m` name them. The whole suite runs on the first."""

NOTED = "untested-platform-noted"
"""The file in the folder of caches that says that the user was told."""


def machine() -> str:
    """Return the processor's kind, such as x86_64; on Windows, what its environment says."""
    return os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "").lower()


def is_tested() -> bool:
    """Return whether bytes were compared on this system and kind of processor."""
    return (sys.platform, machine()) in TESTED


def note_untested() -> None:
    """Print on stderr what this machine's user should know; at the first use alone, where caches can be written."""
    from codec.cache import cache_folder

    noted = cache_folder() / NOTED
    if noted.exists():
        return
    console.notes.print(
        f"the bytes of underpar were compared on Linux (x86-64, arm64), not on {sys.platform} with a processor of kind "
        f"{machine() or 'unknown'}: decode what you encode before you remove the original"
    )
    with suppress(OSError):
        noted.touch()
