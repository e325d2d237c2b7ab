"""Everything between a state dict or text and bytes: packs, archives, exact inference."""

from codec.archive import ArchiveReader, ArchiveWriter, decode, encode
from codec.errors import BudgetError, CodecError, FormatError, MismatchError
from codec.pack import Pack, compress, decompress, open

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
    "open",
]
