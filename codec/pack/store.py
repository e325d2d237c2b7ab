"""Find packs in folders by name or hash.

A folder may hold packs as `NAME.pack`, and published models as `OWNER/NAME/model.pack` (`artifacts.share.store`).
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from codec.errors import FormatError
from codec.run_folder import PACK

FOLDERS: list[Path] = []
"""Folders where commands look for packs; `underpar` adds the folder of the packs that ship and the user's folder."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"{_PART}/{_PART}")


def is_name(name: str) -> bool:
    """Return whether `name` is of the form `owner/name`.

    >>> is_name("owner/small.2"), is_name("../small"), is_name("small")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def packs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the packs in `folders` by name, sorted in each folder; a name in an earlier folder hides later ones."""
    found: dict[str, Path] = {}
    for folder in folders:
        names = {path.stem: path for path in sorted(folder.glob("*.pack"))}
        for path in sorted(folder.glob(f"*/*/{PACK}")):
            name = path.parent.relative_to(folder).as_posix()
            if is_name(name):
                names[name] = path
        found = {**names, **found}
    return found


def find(name: str | Path, folders: Sequence[Path]) -> Path:
    """Return the path of a pack, given its name in `folders` or its path.

    Raises:
        FormatError: no folder has a pack of this name, and there is no such file.
    """
    known = packs(folders)
    path = known.get(str(name), Path(name))
    if path.is_dir():
        raise FormatError(f"pack {name}: {_advice(path)}")
    if not path.is_file():
        raise FormatError(f"pack {name}: neither a file nor one of {sorted(known)}; pass a path or one of these names")
    return path


def _advice(folder: Path) -> str:
    """Say how a folder becomes a pack."""
    if (folder / PACK).is_file():
        return f"a folder, expected a file; pass {folder / PACK}"
    if (folder / "config.json").is_file():  # of transformers; our checkpoints have theirs beside the weights
        return (
            f"a folder of a Hugging Face model, expected a pack; make one: underpar import {folder} -o RUN, then "
            "underpar pack RUN -o NAME.pack"
        )
    return f"a folder, expected a file; of a run folder, make a pack: underpar pack {folder} -o NAME.pack"


def find_hash(sha256: str, folders: Sequence[Path]) -> Path | None:
    """Return the pack in `folders` whose file's SHA-256 (hex) begins with `sha256`; None where there is none.

    Small files are read first: an archive of the small pack does not wait for a large one to be read.
    """
    for path in sorted(packs(folders).values(), key=lambda path: path.stat().st_size):
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest().startswith(sha256):
                return path
    return None
