"""A folder in which published models are kept.

The store is a folder with one folder for each `owner/name` (`artifacts.share.bundle` says what is in it): the one that
the environment variable UNDERPAR_STORE names, or `.underpar/models` in the home folder. It is as good a place to
publish to as the hub, and what is pulled from the hub comes to lie in it.
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
        return packs([self.root])

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
