"""A folder in which published models are kept.

The store is a folder with one folder for each `owner/name` (`artifacts.share.bundle` lists its files). The environment
variable UNDERPAR_STORE names the store; the default is `.underpar/models` in the home folder. Models can be published
to the store as to the hub, and models pulled from the hub are kept in the store.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codec.errors import FormatError
from codec.pack.store import is_name, packs

if TYPE_CHECKING:
    from artifacts.share.bundle import Card


MODELS = Path(__file__).parents[1] / "models"
"""The folder of the packs that ship."""


def default_store() -> "Store":
    """Return the store of this user."""
    return Store(Path(os.environ.get("UNDERPAR_STORE") or Path.home() / ".underpar" / "models"))


def search_path() -> list[Path]:
    """List the folders in which commands look for packs."""
    try:
        return [MODELS, default_store().root]
    except RuntimeError:  # nobody's home
        return [MODELS]


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
        return packs([self.root])

    def put(self, name: str, run: Path, card: "Card") -> Path:
        """Publish a run in this store, in place of any model of that name, and return its folder.

        Raises:
            CodecError: as `artifacts.share.bundle.make_bundle`; the store is then as before.
        """
        from artifacts.share.bundle import make_bundle

        self.folder(name)  # a name that is none fails before anything is made
        self.root.mkdir(parents=True, exist_ok=True)
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
