"""Find the source that a decoder needs by its imports, and make it small but still readable.

`ast.unparse` of the standard library writes a module without docstrings and comments. Names and types stay, because a
reviewer has to read the code before running it: a minifier that also renames would save 0.3 % of 16,000,000 bytes, a
compressed stub 0.6 %.
"""

import ast
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path

from eval import imports

DECODER = ("codec.archive.restore", "codec.archive.writer", "codec.pack.reader", "codec.backends.cpu.backend")
"""The modules from which the search for a decoder's modules begins; `codec` imports archive and pack by name, on first
use."""

TRAINER = ("codec.pack.writer", "trainer.run.loop", "trainer.fit.calibrate", "trainer.recipe")
"""The modules from which the search for training's modules begins: training, and the calibration for a pack's steps."""

ROOMS = ("codec", "trainer")

WITHOUT = ("codec.text.solid.blocks", "codec.text.cluster.coder")
"""The coder of solid blocks, since the text of a submission is coded document by document, and that of clusters."""

BROUGHT = ("triton",)
"""Packages that torch installs in the version that torch needs, on systems that can use them."""


def minify(source: str) -> str:
    """Remove comments and docstrings from Python source.

    >>> minify('def f():  # why\\n    "What."\\n    return 1\\n')
    'def f():\\n return 1\\n'
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                kept = [statement for statement in body if not _is_text(statement)]
                setattr(node, field, kept or [ast.copy_location(ast.Pass(), s) for s in body[:1]])
    text = "".join(_dedent(line) for line in ast.unparse(tree).splitlines())
    # The indentation of a string of several lines must not have been changed.
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(ast.unparse(tree)))
    return text


def _dedent(line: str) -> str:
    """Indent a line of `ast.unparse` with one space for each level."""
    code = line.lstrip(" ")
    return " " * ((len(line) - len(code)) // 4) + code + "\n"


def _is_text(statement: ast.AST) -> bool:
    constant = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def modules(roots: Sequence[str] = DECODER) -> dict[str, Path]:
    """Find the modules of this project that `roots` import, directly or not, and their files."""
    return imports.modules(roots, ROOMS, WITHOUT)


def sources(roots: Sequence[str] = DECODER) -> dict[str, bytes]:
    """Minify the files of `modules(roots)`; return them by their path in a folder that goes on Python's path."""
    found = {}
    for name, path in modules(roots).items():
        inside = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        found[inside] = minify(path.read_text()).encode()
    return found


def requirements(roots: Sequence[str] = DECODER) -> list[str]:
    """List the packages that `modules(roots)` import, as lines of a requirements file with the installed versions.

    Packages of extras that are not installed are left out: the score was made without them.
    """
    found = set()
    owners = packages_distributions()
    for path in modules(roots).values():
        for name in imports.imports(path.read_text()):
            top = name.split(".")[0]
            if top in owners and top not in sys.stdlib_module_names and top not in (*ROOMS, *BROUGHT):
                found.add(owners[top][0])
    return sorted(f"{name}=={version(name).split('+')[0]}" for name in found)
