"""Finding packs by name or by hash in folders.

A folder may hold packs as `NAME.pack`, and published models as `OWNER/NAME/model.pack` (`artifacts.share.store`).
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from codec.errors import FormatError
from codec.run_folder import PACK

FOLDERS: list[Path] = []
"""Where commands look for packs; `underpar` adds the folder of the packs that ship and that of the user."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"{_PART}/{_PART}")


def is_name(name: str) -> bool:
    """Tell whether `name` is `owner/name`.

    >>> is_name("owner/small.2"), is_name("../small"), is_name("small")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def packs(folders: Sequence[Path]) -> dict[str, Path]:
    """List the packs in `folders` by name, each folder's in order of its names; an earlier folder's name wins."""
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
    """Find the file of a pack by its name in `folders`, or by its path.

    Raises:
        FormatError: no folder has a pack of this name, and no file is there.
    """
    known = packs(folders)
    path = known.get(str(name), Path(name))
    if not path.is_file():
        raise FormatError(f"pack {name}: neither a file nor one of {sorted(known)}; pass a path or one of these names")
    return path


def find_hash(sha256: str, folders: Sequence[Path]) -> Path | None:
    """Find the pack whose file's SHA-256 (hex) begins with `sha256` in `folders`; None where there is none."""
    for path in packs(folders).values():
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest().startswith(sha256):
                return path
    return None
