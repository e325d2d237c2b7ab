"""The source that a decoder needs, found by its imports and made small without making it unreadable.

The standard library does it: `ast.unparse` of a module whose docstrings are gone. Names and types stay, because a
reviewer has to read what he is asked to run: a minifier that also renames would save 0.3 % of 16,000,000 bytes, a
compressed stub 0.6 %.
"""

import ast
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path

from eval import imports

DECODER = ("codec.archive.restore", "codec.archive.writer", "codec.pack.reader", "codec.backends.cpu.backend")
"""Where the search for a decoder's modules begins; `codec` itself imports archive and pack by name, on first use."""

TRAINER = ("codec.pack.writer", "trainer.run.loop", "trainer.fit.calibrate", "trainer.recipe")
"""The same for a run: training, and the calibration that a pack's steps come from."""

ROOMS = ("codec", "trainer")

BROUGHT = ("triton",)
"""Packages that come with torch, in the version that it needs, where they can be used."""


def minify(source: str) -> str:
    """Python source without comments and docstrings, otherwise as it was.

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
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(ast.unparse(tree)))  # no string spans lines
    return text


def _dedent(line: str) -> str:
    """A line of `ast.unparse` with one space for each level."""
    code = line.lstrip(" ")
    return " " * ((len(line) - len(code)) // 4) + code + "\n"


def _is_text(statement: ast.AST) -> bool:
    constant = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def modules(roots: Sequence[str] = DECODER) -> dict[str, Path]:
    """The modules of our rooms that `roots` import, directly or not, and their files."""
    return imports.modules(roots, ROOMS)


def sources(roots: Sequence[str] = DECODER) -> dict[str, bytes]:
    """The minified files of `modules(roots)` by their path in a folder that goes on Python's path."""
    found = {}
    for name, path in modules(roots).items():
        inside = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        found[inside] = minify(path.read_text()).encode()
    return found


def requirements(roots: Sequence[str] = DECODER) -> list[str]:
    """What `modules(roots)` need beside Python, as lines of a requirements file: the versions that are here."""
    found = set()
    owners = packages_distributions()
    for path in modules(roots).values():
        for name in imports.imports(path.read_text()):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in (*ROOMS, *BROUGHT):
                found.add(owners[top][0])
    return sorted(f"{name}=={version(name).split('+')[0]}" for name in found)
