"""No library's logarithm, power or sine decides an integer: only C's correctly rounded operations, tables and Python's
integers do. What is looked at is the source of all that an encoder and a decoder must compute alike.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FOLDERS = ("numerics", "entropy", "cm", "model", "edits", "exact", "backends", "text", "archive", "pack/parts")
"""Of `codec`. What chooses integers once, when a pack is made, is in `quantization` and in the writer of packs."""

ROUNDED_SOMEHOW = {
    *("log", "log2", "log10", "log1p", "exp", "exp2", "expm1", "pow", "power", "sin", "cos", "tan", "tanh", "sinh"),
    *("cosh", "atan", "atan2", "asin", "acos", "cbrt", "hypot", "erf", "gamma", "lgamma", "sigmoid", "softmax", "gelu"),
    *("logsumexp", "log_softmax", "logaddexp", "rsqrt", "float_power"),
}
"""Functions whose last bit differs between libraries; `sqrt` is correctly rounded but for torch's, see below."""

REPORTS = {
    "text/documents.py": {"log2"},  # ideal bits
    "entropy/adaptive_table.py": {"log2"},  # a cost, by which the writer of a part chooses
    "entropy/range_coder.py": {"log2"},  # bits so far
    "entropy/frequencies.py": {"log2"},  # exact bits
    "backends/cpu/head.py": {"log2"},  # the same
    "backends/cuda/kernels/head.py": {"log2"},  # the same
    "exact/weights.py": {"log2"},  # in a message
    "pack/parts/planes.py": {"log2"},  # a cost, by which the writer chooses
    "pack/parts/context_coder.py": {"log2", "exp2"},  # `typical`, which a pack says
}
"""Where such a function only makes a figure, or what the file says anyway."""

REPAIRED = {"numerics/fixed_point.py", "backends/cuda/kernels/elementwise.py"}
"""Roots of torch and Triton that integers repair (`reciprocal_sqrt`)."""


def calls(source: str) -> Iterator[str]:
    """Names of functions that a library rounds, `**` of a float, and torch's `sqrt`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            named = owner.id if isinstance(owner, ast.Name) else ""
            if node.func.attr in ROUNDED_SOMEHOW and named not in ("_DECIMAL", "tables"):
                yield node.func.attr
            if node.func.attr == "sqrt" and named not in ("math", "np"):
                yield "sqrt"
        floats = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and isinstance(node.left, ast.Constant)
        if floats and isinstance(node.left.value, float):
            yield "**"


def found() -> dict[str, set[str]]:
    paths = (path for folder in FOLDERS for path in (ROOT / "codec" / folder).rglob("*.py"))
    return {path.relative_to(ROOT / "codec").as_posix(): set(calls(path.read_text())) for path in paths}


def test_no_library_decides_an_integer() -> None:
    seen = found()
    allowed = {name: REPORTS.get(name, set()) | ({"sqrt"} if name in REPAIRED else set()) for name in seen}
    assert {name: names - allowed[name] for name, names in seen.items() if names - allowed[name]} == {}
    assert set(REPORTS) | REPAIRED <= set(seen)


@pytest.mark.parametrize("line", ["math.log2(x)", "2.0 ** n", "torch.sqrt(x)", "x.exp()", "np.tanh(x)", "tl.sqrt(x)"])
def test_a_planted_call_is_found(line: str) -> None:
    assert list(calls(f"y = {line}"))


@pytest.mark.parametrize("line", ["math.sqrt(x)", "np.sqrt(x)", "_DECIMAL.exp(x)", "2 ** n", "math.ldexp(1.0, n)"])
def test_what_every_machine_rounds_alike_is_not(line: str) -> None:
    assert not list(calls(f"y = {line}"))
