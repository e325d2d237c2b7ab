"""Read the arguments of a command without typer's checks of types, which take as long as coding a short text.

Only what is surely right is read here. Help, completion and mistakes are typer's.
"""

import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin


def read(command: Callable[..., None], words: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of a command's function by name; None where typer has to look at the words.

    Args:
        command: a function whose parameters are annotated for typer.
        words: what stands behind the command's name.
    """
    options: dict[str, tuple[str, bool]] = {}  # parameter, and whether a flag sets it
    kinds: dict[str, tuple[type, bool, Any]] = {}  # type, whether there are several, and what typer is told
    positional = ""
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, told = get_args(parameter.annotation)
        kinds[name] = (*_kind(annotation), told)
        if type(told).__name__ == "ArgumentInfo":  # by name, since only the folders of commands know typer
            positional = name
            continue
        dashed = name.replace("_", "-")
        first = (told.default,) if isinstance(told.default, str) else ()  # where typer keeps the first spelling
        spellings = (*first, *(told.param_decls or ()))
        for spelling in spellings or (f"--{dashed}",):
            options[spelling] = name, True
        if annotation is bool and not spellings:
            options[f"--no-{dashed}"] = name, False
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, flag = options.get(word, ("", True)) if word.startswith("-") and word != "-" else (positional, True)
        if not name:
            return None
        kind, many, told = kinds[name]
        if kind is bool:
            found[name] = flag
            continue
        text = word if name == positional else rest.pop(0) if rest else ""
        value = _value(text, kind, told)
        if value is None or (name in found and not many):
            return None
        found[name] = [*found.get(name, []), value] if many else value
    return found


def _kind(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether there are several."""
    if isinstance(annotation, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return (get_args(annotation)[0], True) if get_origin(annotation) is list else (annotation, False)


def _value(text: str, kind: type, told: Any) -> Any:
    """Return the value that a word stands for; None where that is not certain."""
    if not text or (text.startswith("-") and text != "-"):
        return None
    if kind in (str, Path):
        return kind(text)
    if issubclass(kind, Enum):
        return kind(text) if text in {member.value for member in kind} else None
    if kind is int and told.max is None and text.isascii() and text.isdigit() and (told.min or 0) <= int(text):
        return int(text)
    return None
