"""The notebooks run from top to bottom, and say what they said when they were committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_whole_and_shows_pictures(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    committed = nbformat.read(path, as_version=4)
    again = nbformat.from_dict(committed)
    NotebookClient(again, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()  # raises if a cell does
    pictures = [
        [
            sum("image/png" in output.get("data", {}) for output in cell.outputs)
            for cell in book.cells
            if "outputs" in cell
        ]
        for book in (committed, again)
    ]
    assert pictures[0] == pictures[1]
