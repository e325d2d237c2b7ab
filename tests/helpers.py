"""What several test modules share: the data folder beside the checkout, and a tiny trained-looking model."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(*parts: str) -> Path:
    """A path in the data folder beside the checkout; the test is skipped where that folder is absent."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared data folder, which is not beside this checkout")
    return path
