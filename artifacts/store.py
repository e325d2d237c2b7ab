"""Packs by name: the small ones that ship, and any file."""

from pathlib import Path
from typing import TYPE_CHECKING

from codec.errors import FormatError
from codec.files import read_bytes

if TYPE_CHECKING:
    from codec.pack import Pack

MODELS = Path(__file__).parent / "models"
"""The folder of the packs that ship."""


def shipped() -> dict[str, Path]:
    """The packs that ship, by name."""
    return {path.stem: path for path in sorted(MODELS.glob("*.pack"))}


def find(name: str | Path) -> Path:
    """The file of a pack: `name` is one that ships, or a path. Raises FormatError if it is neither."""
    path = shipped().get(str(name), Path(name))
    if not path.is_file():
        raise FormatError(f"pack {name}: neither a file nor one of {sorted(shipped())}")
    return path


def open(name: str | Path) -> "Pack":
    """The opened pack `name`. Raises FormatError as `find` and `codec.open` do."""
    import codec

    return codec.open(read_bytes(find(name), "pack"))
