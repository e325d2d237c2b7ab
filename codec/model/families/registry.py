"""Find the module of a family by the name that a file gives it."""

from types import ModuleType
from typing import Any

from codec.errors import FormatError
from codec.model.families import gpt2, llama

FAMILIES = (llama, gpt2)
"""Every family; a new one is a module with the same names, listed here."""


def by_model_type(name: Any, where: str) -> ModuleType:
    """Return the family of a config.json's `model_type`. Raises FormatError for one that is not known."""
    return _find("MODEL_TYPES", "model_type", name, where)


def by_architecture(name: Any, where: str) -> ModuleType:
    """Return the family of a GGUF file's `general.architecture`. Raises FormatError for one that is not known."""
    return _find("ARCHITECTURES", "general.architecture", name, where)


def _find(names: str, key: str, name: Any, where: str) -> ModuleType:
    for family in FAMILIES:
        if isinstance(name, str) and name in getattr(family, names):
            return family
    known = ", ".join(sorted(known for family in FAMILIES for known in getattr(family, names)))
    raise FormatError(f"{where}: {key} is {name!r}; underpar knows {known}")
