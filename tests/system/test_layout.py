"""The tree: rooms and folders import one way only, nothing imports in a circle, folders and modules stay small."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("codec", "trainer", "eval", "artifacts", "underpar")
"""Rooms in order: each imports from those before it only."""

FOLDERS = {
    "codec": "numerics entropy cm model edits quantization exact backends pack text archive cli",
    "trainer": "data kernels model optim run fit cli",
    "eval": "score bench proof audit museum ablate screen cli",
    "artifacts": "share submission cli",
    "underpar": "",
}
"""Folders of each room in order: modules beside them come first, and each imports from those before it only."""

ENTRIES = {"codec", "artifacts"}
"""Packages whose `__init__` hands on names of folders below it, on first use: not part of any order."""

MOST_MODULES = 12
MOST_LINES = 400


def modules() -> dict[str, Path]:
    """Every module of the rooms by its dotted name."""
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(source: str) -> Iterator[str]:
    """Every name that `source` imports when it runs: also inside functions, not for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for target in imports(path.read_text()):
            while target and target not in known:
                target = target.rpartition(".")[0]
            targets.add(target)
        found[name] = targets - {"", name}
    return found


def place(module: str) -> tuple[int, int]:
    """(number of the room, number of the folder in it, 0 for modules beside the folders)."""
    room, *rest = module.split(".")
    folders = FOLDERS[room].split()
    below = rest and (ROOT / room / rest[0]).is_dir()
    return ROOMS.index(room), 1 + folders.index(rest[0]) if below else 0


def backward(found: dict[str, set[str]]) -> list[str]:
    """The imports that run against the order of rooms and folders."""
    return [
        f"{name} imports {target}"
        for name, targets in found.items()
        for target in targets
        if name not in ENTRIES and target not in ENTRIES and place(target) > place(name)
    ]


def test_imports_follow_the_order_of_rooms_and_folders() -> None:
    assert backward(graph()) == []


def test_nothing_imports_in_a_circle() -> None:
    """graphlib raises CycleError, which names the modules of the circle."""
    found = {name: targets - ENTRIES for name, targets in graph().items()}
    assert len(list(TopologicalSorter(found).static_order())) >= len(found)


@pytest.mark.parametrize(
    ("name", "target"),
    [("codec.numerics.tables", "codec.text.policy"), ("codec.errors", "trainer.recipe"), ("eval.tables", "eval.score")],
)
def test_a_backward_import_is_found(name: str, target: str) -> None:
    """Planted imports that run against the order of folders, rooms, and of modules beside folders."""
    assert backward({name: {target}}) == [f"{name} imports {target}"]


def test_folders_are_small() -> None:
    counts: dict[Path, int] = {}
    for path in modules().values():
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > MOST_MODULES} == {}


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_only_the_cli_folders_know_typer() -> None:
    users = {name for name, path in modules().items() for target in imports(path.read_text()) if target == "typer"}
    assert {name for name in users if ".cli" not in name} <= {"underpar.commands"}
