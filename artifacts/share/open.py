"""Models by name: the small packs that ship, any file, and a store of published models.

The store is a folder with one folder for each `owner/name` (`artifacts.share.bundle` lists its files). The environment
variable UNDERPAR_STORE names the store; the default is `.underpar/models` in the home folder. Models can be published
to the store as to the hub, and models pulled from the hub are kept in the store.
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
    """Return the packs that ship, by name."""
    return {path.stem: path for path in sorted(MODELS.glob("*.pack"))}


def find(name: str | Path) -> Path:
    """Return the file of a pack: a pack that ships, a path, or `owner/name` in the store.

    Raises:
        FormatError: `name` is none of these.
    """
    path = shipped().get(str(name), Path(name))
    if path.is_file():
        return path
    kept = default_store().packs().get(str(name))
    if kept is None:
        raise FormatError(f"pack {name}: neither a file, nor one of {sorted(shipped())}, nor in the store")
    return kept


def open(name: str | Path) -> "Pack":
    """Open the pack `name` that `find` finds, or else pull the model `owner/name` from the hub into the store.

    Raises:
        FormatError: as `find` and `codec.open`.
        CodecError: the hub has no such model, or the files are not those published.
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
    """Return whether `name` is `owner/name`.

    >>> is_name("owner/small.2"), is_name("../small"), is_name("small")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def default_store() -> "Store":
    """Return the store of this user."""
    return Store(Path(os.environ.get("UNDERPAR_STORE") or Path.home() / ".underpar" / "models"))


@dataclass(frozen=True)
class Store:
    """A folder of published models."""

    root: Path

    def folder(self, name: str) -> Path:
        """Return the folder of the model `owner/name`, whether it exists or not.

        Raises:
            FormatError: `name` has another form.
        """
        if not is_name(name):
            raise FormatError(f"model {name!r}: expected owner/name of letters, digits, dots, hyphens and underscores")
        return self.root / name

    def packs(self) -> dict[str, Path]:
        """Return the pack of every model in the store, by the model's name."""
        found = sorted(self.root.glob(f"*/*/{PACK}"))
        names = {path.parent.relative_to(self.root).as_posix(): path for path in found}
        return {name: path for name, path in names.items() if is_name(name)}

    def put(self, name: str, run: Path, card: "Card") -> Path:
        """Publish a run in this store, in place of any model of that name, and return its folder.

        Raises:
            CodecError: as `artifacts.share.bundle.make_bundle`; the store is then as before.
        """
        from artifacts.share.bundle import make_bundle

        self.folder(name).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new.", dir=self.root) as room:
            bundle = Path(room) / "bundle"
            bundle.mkdir()
            make_bundle(run, bundle, name, card)
            return self.accept(name, bundle)

    def accept(self, name: str, bundle: Path) -> Path:
        """Move a bundle in `root` to its place, once all of it agrees, and return its folder.

        Raises:
            CodecError: as `artifacts.share.bundle.check_bundle`; the store is then as before.
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
