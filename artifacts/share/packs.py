"""Packs by name: the small ones that ship, any file, the store of this user, and the hub."""

from pathlib import Path

import codec
from artifacts.share.store import MODELS, default_store, search_path
from codec.errors import FormatError
from codec.files import read_bytes
from codec.pack import store as pack_store
from codec.pack.reader import Pack
from codec.run_folder import PACK


def shipped() -> dict[str, Path]:
    """List the packs that ship, by name."""
    return pack_store.packs([MODELS])


def find(name: str | Path) -> Path:
    """Find the file of a pack: one that ships, `owner/name` in the store, or a path.

    Raises:
        FormatError: `name` is none of these.
    """
    return pack_store.find(name, search_path())


def open(name: str | Path) -> Pack:
    """Open the pack that `find` finds, or else the model `owner/name` of the hub, which the store keeps from then on.

    Raises:
        FormatError: as `find` and `codec.open` do.
        CodecError: the hub has no such model, or what arrived is not what was published.
    """
    try:
        path = find(name)
    except FormatError:
        if not pack_store.is_name(str(name)):
            raise
        from artifacts.share.hub import pull  # the hub's library is slow to import

        path = pull(str(name), default_store()) / PACK
    return codec.open(read_bytes(path, "pack"))
