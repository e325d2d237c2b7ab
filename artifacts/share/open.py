"""Models by name: the small packs that ship, any file, and a folder in which published models are kept.

The store is a folder with one folder for each `owner/name` (`artifacts.share.bundle` says what is in it): the one that
the environment variable UNDERPAR_STORE names, or `.underpar/models` in the home folder. It is as good a place to
publish to as the hub, and what is pulled from the hub comes to lie in it.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codec.errors import FormatError
from codec.files import read_bytes

if TYPE_CHECKING:
    from artifacts.share.bundle import Card
    from codec.pack.reader import Pack

MODELS = Path(__file__).parents[1] / "models"
"""The folder of the packs that ship."""

PACK = "model.pack"

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"{_PART}/{_PART}")


def shipped() -> dict[str, Path]:
    """The packs that ship, by name."""
    return {path.stem: path for path in sorted(MODELS.glob("*.pack"))}


def find(name: str | Path) -> Path:
    """The file of a pack: one that ships, a path, or `owner/name` in the store.

    Raises:
        FormatError: it is none of these.
    """
    path = shipped().get(str(name), Path(name))
    if path.is_file():
        return path
    kept = default_store().packs().get(str(name))
    if kept is None:
        raise FormatError(f"pack {name}: neither a file, nor one of {sorted(shipped())}, nor in the store")
    return kept


def open(name: str | Path) -> "Pack":
    """The opened pack `name`: what `find` finds, or else the model `owner/name` of the hub, kept from then on.

    Raises:
        FormatError: as `find` and `codec.open` do.
        CodecError: the hub has no such model, or what arrived is not what was published.
    """
    import codec

    try:
        path = find(name)
    except FormatError:
        if not is_name(str(name)):
            raise
        from artifacts.share.hub import pull

        path = pull(str(name), default_store()) / PACK
    return codec.open(read_bytes(path, "pack"))


def is_name(name: str) -> bool:
    """Whether `name` is `owner/name`.

    >>> is_name("owner/small.2"), is_name("../small"), is_name("small")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def default_store() -> "Store":
    """The store of this user."""
    return Store(Path(os.environ.get("UNDERPAR_STORE") or Path.home() / ".underpar" / "models"))


@dataclass(frozen=True)
class Store:
    """Published models in a folder."""

    root: Path

    def folder(self, name: str) -> Path:
        """Where the model `owner/name` lies or would lie. Raises FormatError for another kind of name."""
        if not is_name(name):
            raise FormatError(f"model {name!r}: expected owner/name of letters, digits, dots, hyphens and underscores")
        return self.root / name

    def packs(self) -> dict[str, Path]:
        """The pack of every model that is kept, by its name."""
        found = sorted(self.root.glob(f"*/*/{PACK}"))
        names = {path.parent.relative_to(self.root).as_posix(): path for path in found}
        return {name: path for name, path in names.items() if is_name(name)}

    def put(self, name: str, run: Path, card: "Card") -> Path:
        """Publish a run in this store, in place of a model of that name; returns its folder.

        Raises:
            CodecError: as `artifacts.share.bundle.make_bundle`; then the store is as it was.
        """
        from artifacts.share.bundle import make_bundle

        self.folder(name).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new.", dir=self.root) as room:
            bundle = Path(room) / "bundle"
            bundle.mkdir()
            make_bundle(run, bundle, name, card)
            return self.accept(name, bundle)

    def accept(self, name: str, bundle: Path) -> Path:
        """Move a bundle that lies in `root` to its place, once all in it agrees; returns its folder.

        Raises:
            CodecError: as `artifacts.share.bundle.check_bundle`; then the store is as it was.
        """
        from artifacts.share.bundle import check_bundle

        check_bundle(bundle)
        target = self.folder(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".old.", dir=self.root) as room:
            if target.exists():
                target.rename(Path(room) / "old")
            bundle.rename(target)
        return target
