"""Files that state more than they hold are refused by an error of ours, in bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = {
    "artifact of the challenge: bytes when unpacked": 5 << 29,
    "archive: a block of contexts in a few bytes": 5 << 26,
}
"""Bytes of files that take more than MEMORY before they are refused: a gigabyte, once as pieces and once as a whole; 64
MiB of text, the most that a block has, beside the block's tables."""


def listed() -> list[str]:
    """The hostile files of docs/bounds.md, from the last column of its tables."""
    rows = [line.split("|") for line in (ROOT / "docs" / "bounds.md").read_text().splitlines() if line.startswith("| ")]
    return [cells[3].strip() for cells in rows if cells[3].strip() != "hostile file"]


def test_the_list_names_every_hostile_file() -> None:
    from tests.support.hostile import FILES

    assert listed() == list(FILES)


@pytest.fixture(scope="module")
def found() -> dict[str, list]:
    command = [sys.executable, "-m", "tests.support.hostile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert not done.returncode, done.stderr
    return {name: said for line in done.stdout.splitlines() for name, said in json.loads(line).items()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_are_refused(found: dict[str, list]) -> None:
    from tests.support.hostile import FILES, MEMORY, SECONDS

    assert set(found) == set(FILES)
    wrong = {name: said for name, said in found.items() if "CodecError" not in said[0]}
    assert wrong == {}
    slow = {name: said for name, said in found.items() if said[2] > SECONDS}
    assert slow == {}
    large = {name: said for name, said in found.items() if said[3] > UNPACKED.get(name, MEMORY)}
    assert large == {}
