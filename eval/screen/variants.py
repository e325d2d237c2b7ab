"""Variants of a recipe: named sets of overrides in a TOML file, a table for each.

    [no_xsa]
    model.xsa_layers = 0

All variants of a recipe capped by steps train on as many tokens: a variant that changes the batch, and does not set
`train.iterations` itself, makes more or fewer steps. `sets/` holds the files that ship. `eval.screen.screen` tests the
variants against the recipe.
"""

import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from codec.errors import FormatError
from codec.files import read_bytes
from trainer.optim.schedule import mean_batch
from trainer.recipe import Recipe

ABLATIONS = Path(__file__).parent / "sets"
"""The folder of the named files of variants."""

BASE = "base"
"""The name of the recipe itself among its variants."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Allowed names of variants, which name folders."""


def load_variants(name: str, base: Recipe, only: Sequence[str] = (), also: Collection[str] = ()) -> dict[str, Recipe]:
    """Load the recipe itself, as `base`, and its variants in the order of the file.

    Args:
        name: of a file that ships (`screen`), or the path of a TOML file.
        base: the recipe.
        only: the wanted variants, since the others may not fit the recipe; empty: all.
        also: more variants, wanted if the file has them.

    Raises:
        FormatError: no such file, not TOML, a name that cannot name a folder, no such variant, or an invalid recipe.
    """
    shipped = {path.stem: path for path in sorted(ABLATIONS.glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if name not in shipped and not path.is_file():
        raise FormatError(f"variants {name}: neither a file nor one of {sorted(shipped)}")
    try:
        tables = tomllib.loads(read_bytes(path, "variants").decode())
    except ValueError as error:
        raise FormatError(f"variants {path}: not TOML ({error})") from error
    if unknown := [variant for variant in only if variant != BASE and variant not in tables]:
        raise FormatError(f"variants {path}: no {unknown[0][:80]!r}; expected some of {', '.join([BASE, *tables])}")
    found = {BASE: base}
    for variant, overrides in tables.items():
        if variant == BASE or not NAME.fullmatch(variant):
            raise FormatError(
                f"variants {path}: a variant is named {variant[:80]!r}, expected 1 to 64 letters, digits, _ or - "
                f"and not {BASE!r}"
            )
        if not only or variant in only or variant in also:
            found[variant] = _varied(base, overrides, f"variants {path}: {variant}")
    return found


def _varied(base: Recipe, overrides: object, where: str) -> Recipe:
    """Return `base` with entries replaced.

    Raises:
        FormatError: an invalid override; the message begins with `where`.
    """
    if not isinstance(overrides, dict) or not all(isinstance(section, dict) for section in overrides.values()):
        raise FormatError(f"{where} is {str(overrides)[:80]!r}, expected entries such as model.num_layers = 4")
    values = base.to_dict()
    for section, entries in overrides.items():
        values[section] = {**values.get(section, {}), **entries}
    try:
        varied = Recipe.from_dict(values)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if base.train.iterations and "iterations" not in overrides.get("train", {}):
        steps = base.train.iterations * mean_batch(base.train) / mean_batch(varied.train)
        varied = replace(varied, train=replace(varied.train, iterations=max(1, round(steps))))
    return varied
