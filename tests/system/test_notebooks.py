"""The notebooks run from top to bottom, and say what they said when they were committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "path",
    [path if path.stem == "tour" else pytest.param(path, marks=pytest.mark.long) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert all(cell.execution_count for cell in cells)
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
