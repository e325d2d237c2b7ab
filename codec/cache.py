"""Cache machine code, tables, self-test verdicts and decoded weights for this user: results of the sources and packs.

The folder's name is a hash of all source files of this package and of the versions that compile them. After any edit
the hash differs, and a new folder is used.
"""

import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from codec.errors import CodecError

VARIABLE = "UNDERPAR_CACHE"
"""The environment variable that names the folder of caches, in place of `underpar` in the user's cache folder."""

_KEPT = 8  # hashes whose folders are kept: those of some checkouts, environments and recent edits
_HASH = re.compile("[0-9a-f]{32}")
_DIGEST = 32

_MOST_BYTES = 1 << 23  # of a file that `kept` writes
_MOST_FILES = 256  # in a folder that `kept` writes to: thousands of packs must not fill a disk

_UNCOMPILED = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"}
"""Variables of numba that do not change the machine code of this package; `numba_variables` leaves them out."""


@lru_cache
def _versions() -> dict[str, str]:
    """Return the versions of all installed packages by name."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with suppress(OSError):
            for entry in os.listdir(folder or "."):  # noqa: PTH208 (a Path for each of hundreds takes longer)
                name, _, rest = entry.partition("-")
                if rest.endswith((".dist-info", ".egg-info")):
                    found.setdefault(name.lower(), rest.rpartition(".")[0])
    return found


def version(package: str) -> str | None:
    """Return the version of a package, None where there is none of that name.

    The names of folders say the version, too; importing importlib.metadata takes a twentieth of a short text's time.
    """
    return _versions().get(package)


@lru_cache
def source_hash() -> str:
    """Hash all sources of the package, the versions that compile them and numba's variables: 32 hex digits."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    digest.update(repr((*map(version, ("numba", "llvmlite")), sys.version, numba_variables())).encode())
    return digest.hexdigest()[:32]


def numba_variables() -> dict[str, str]:
    """Return the environment variables that change what numba compiles, by name."""
    return {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith("NUMBA_") and name not in _UNCOMPILED
    }


@lru_cache
def cache_folder() -> Path:
    """Return this user's private folder for everything that is cached for these sources.

    The folder is `underpar/HASH` in $XDG_CACHE_HOME or ~/.cache, or HASH in the folder that $UNDERPAR_CACHE names.
    Where the user has no usable home, the folder is in the temporary folder. Where another user has taken the name
    there, the folder has a random name and is removed when the process ends. Machine code is loaded from the folder, so
    a folder that others can write is never used.

    Raises:
        CodecError: the folder that $UNDERPAR_CACHE names cannot be used.
    """
    if named := os.environ.get(VARIABLE):
        found = _own_folder(Path(named))
        if not found:
            raise CodecError(f"{VARIABLE}={named}: expected a folder that this user owns and nobody else can write")
        return found
    for base in _usual_places():
        if found := _own_folder(base):
            return found
    import atexit

    temporary = tempfile.mkdtemp(prefix="underpar-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _usual_places() -> Iterator[Path]:
    if Path(os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        yield Path(os.environ["XDG_CACHE_HOME"]) / "underpar"
    with suppress(RuntimeError):  # a user without a home
        if Path.home().is_dir():
            yield Path.home() / ".cache" / "underpar"
    if hasattr(os, "getuid"):
        yield Path(tempfile.gettempdir()) / f"underpar-{os.getuid()}"


def _own_folder(base: Path) -> Path | None:
    """Return the folder of `source_hash` in `base`, made if missing; None if `base` is not private to this user."""
    folder = base / source_hash()
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for path in (base, folder):
            new = not path.exists()
            path.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(path):
                return None
        with tempfile.TemporaryFile(dir=folder):
            os.utime(folder)
        if new:
            _clean(base)
    except OSError:
        return None
    return folder


def _is_private(path: Path) -> bool:
    """Check that a path is a folder (no link) that belongs to this user and that nobody else can write."""
    found = path.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and mine and (os.name == "nt" or not found.st_mode & 0o022)


def _clean(base: Path) -> None:
    """Remove all folders of hashes except the _KEPT most recently used."""
    folders = [path for path in base.iterdir() if _HASH.fullmatch(path.name)]
    folders.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def kept(name: str, make: Callable[[], bytes], most: int = _MOST_FILES) -> bytes:
    """Return the cached bytes of a name; where they are missing or damaged, make and cache them.

    Args:
        name: a path in the cache folder, FOLDER/FILE.
        make: computes the bytes.
        most: files in FOLDER; where there are as many, nothing more is cached.
    """
    path = cache_folder() / name
    with suppress(OSError):
        found = path.read_bytes()
        if hashlib.sha256(found[_DIGEST:]).digest() == found[:_DIGEST]:
            return found[_DIGEST:]
    made = make()
    with suppress(OSError):  # on a full disk nothing is cached, and the next process computes the bytes again
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if len(made) > _MOST_BYTES or len(list(path.parent.iterdir())) >= most:
            return made
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(made).digest() + made)
        Path(file.name).replace(path)
    return made
