"""Everything between a state dict or text and bytes: packs, archives, exact inference.

Names are imported on first use, so that a command that needs none of torch and numba starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codec.errors import BudgetError, CodecError, FormatError, MismatchError

if TYPE_CHECKING:
    from codec.archive.reader import ArchiveReader, decode
    from codec.archive.whole.merge import merge
    from codec.archive.writer import ArchiveWriter, encode
    from codec.pack.reader import Pack, decompress, open
    from codec.pack.writer import compress

__all__ = [
    "ArchiveReader",
    "ArchiveWriter",
    "BudgetError",
    "CodecError",
    "FormatError",
    "MismatchError",
    "Pack",
    "compress",
    "decode",
    "decompress",
    "encode",
    "merge",
    "open",
]

_HOMES = {
    "codec.archive.reader": ("ArchiveReader", "decode"),
    "codec.archive.whole.merge": ("merge",),
    "codec.archive.writer": ("ArchiveWriter", "encode"),
    "codec.pack.reader": ("Pack", "decompress", "open"),
    "codec.pack.writer": ("compress",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'codec' has no attribute {name!r}")
