"""Find the source files of our own packages that a module needs, by the imports in its source."""

import ast
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds our packages."""

PACKAGES = ("codec", "trainer", "eval", "artifacts", "underpar")


def modules(
    roots: Sequence[str], packages: Collection[str] = PACKAGES, without: Collection[str] = ()
) -> dict[str, Path]:
    """Find the modules that `roots` import, directly or not, inside functions too.

    Args:
        roots: names of modules.
        packages: names of the packages whose modules are followed.
        without: modules that are left out, with what they alone import.

    Returns:
        The source file of each module, by the module's name; `roots` included.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name in without or name.split(".")[0] not in packages or (path := _file(name)) is None:
            continue
        found[name] = path
        waiting += imports(path.read_text())
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # Python imports the package first
    return dict(sorted(found.items()))


def imports(source: str) -> Iterator[str]:
    """List the imported names that may be modules; imports under `TYPE_CHECKING` are left out."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _file(name: str) -> Path | None:
    """Find the source file of a module; None for a name that is no module, such as an imported function."""
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
