"""Compile functions with numba, and keep the machine code where no edit of a source can leave it behind.

Numba's own cache notices changes of the file of the outermost function only, while machine code holds copies of
functions and constants of many files: after an edit elsewhere an old program would go on coding. Here a hash of all
source files of this package and of the compiler's versions names the folder of the machine code, so that an edit
anywhere begins anew. Numba adds the name and the features of the processor to the key of each function.
"""

import hashlib
import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache

from codec.errors import CodecError

VARIABLE = "UNDERPAR_CACHE"
"""The environment variable that names the folder of caches, in place of `underpar` in the user's cache folder."""

_KEPT = 8  # hashes whose folders are kept: those of some checkouts, environments and recent edits
_HASH = re.compile("[0-9a-f]{32}")

_UNCOMPILED = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY"}
"""Variables of numba that change nothing of what is compiled here; `numba_variables` leaves them out."""


def compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function at its first call, or loads its machine code from the cache.

    With NUMBA_DISABLE_JIT=1 functions stay as they are.

    Args:
        options: as of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if dispatcher is not function:
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate


ENABLED = not numba.config.DISABLE_JIT
"""Whether functions are compiled; without, those that exist as machine code only cannot be called."""

compiled = compiler()
"""Compile a function; integers wrap, and a division by zero raises as in Python."""

kernel = compiler(nogil=True, error_model="numpy")
"""Compile a loop over rows: other threads run beside the loop, and a division by zero is IEEE's."""


@lru_cache
def source_hash() -> str:
    """Hash all sources of the package, the versions that compile them and numba's variables: 32 hex digits."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    digest.update(repr((numba.__version__, llvmlite.__version__, sys.version, numba_variables())).encode())
    return digest.hexdigest()[:32]


def numba_variables() -> dict[str, str]:
    """Return the environment variables that change what numba compiles, by name."""
    return {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith("NUMBA_") and name not in _UNCOMPILED
    }


@lru_cache
def cache_folder() -> Path:
    """Return the folder of everything that is cached for these sources, for this user alone.

    The folder is `underpar/HASH` in $XDG_CACHE_HOME or ~/.cache, or HASH in the folder that $UNDERPAR_CACHE names.
    Where the user has no usable home, the folder is in the temporary folder; where another user has taken the name
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
    """Return the folder of `source_hash` in `base`, made where it is missing; None where this user may not use it."""
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
    """Whether a path is a folder, no link, of this user, that nobody else can write."""
    found = path.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and mine and (os.name == "nt" or not found.st_mode & 0o022)


def _clean(base: Path) -> None:
    """Remove all folders of hashes but the _KEPT that were used last."""
    folders = [path for path in base.iterdir() if _HASH.fullmatch(path.name)]
    folders.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


class _Locator:
    """Where numba finds the machine code of one function."""

    def __init__(self, function: Any):
        self._py_file = function.__code__.co_filename
        self._line = function.__code__.co_firstlineno

    def ensure_cache_path(self) -> None:
        Path(self.get_cache_path()).mkdir(mode=0o700, parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_folder() / "numba")

    def get_source_stamp(self) -> str:
        """Hash the file of the function, which may be in another room than those of `source_hash`."""
        return _file_hash(self._py_file)

    def get_disambiguator(self) -> str:
        return str(self._line)


@lru_cache
def _file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class _Format(CompileResultCacheImpl):
    """How numba writes a compiled function, with this module's place for it whatever numba's variables say."""

    def __init__(self, function: Any):
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        name = f"{function.__module__}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _Cache(FunctionCache):
    """The cache of one function; a disk that is full or a file that is damaged costs a compilation, not the command."""

    _impl_class = _Format

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            yield
