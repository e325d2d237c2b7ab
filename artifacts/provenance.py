"""Files that exist only while training runs, and their sources: `provenance.json` of a submission folder.

A submission may bring its own training set beside its code, load the set, and delete it before anything is scored. No
rule says whether those bytes count, so they must at least be known. Each file has its size, its SHA-256, and the texts
from which it was derived, with their SHA-256.

    {"training_only": [{"path": "extra.jsonl", "bytes": 1234, "sha256": "…",
                        "derived_from": [{"name": "FineWeb, shard 7", "sha256": "…"}]}]}
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from codec.errors import FormatError, MismatchError
from codec.files import atomic_write, read_bytes

FILE = "provenance.json"

MAX_BYTES = 1 << 24
"""Largest size of the manifest itself."""


@dataclass(frozen=True)
class Source:
    """A source text: a name by which a person can find the text, and its hex SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class TrainingOnly:
    """A file that is deleted before the score is made."""

    path: str  # in the folder, with forward slashes
    bytes: int
    sha256: str
    derived_from: tuple[Source, ...]


def save_provenance(folder: Path, files: tuple[TrainingOnly, ...]) -> None:
    """Write the manifest into `folder`."""
    with atomic_write(folder / FILE) as file:
        file.write(json.dumps({"training_only": [asdict(entry) for entry in files]}, indent=1).encode())


def load_provenance(folder: Path) -> tuple[TrainingOnly, ...]:
    """Return the manifest of `folder`, empty without a file.

    Raises:
        FormatError: the file is not of `save_provenance`, or an entry has no source.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(f"provenance {path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}")
    try:
        entries = json.loads(read_bytes(path, "provenance"))["training_only"]
        found = tuple(_entry(entry) for entry in entries)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"provenance {path}: not a manifest of training-only files ({error!r})") from error
    if len({entry.path for entry in found}) != len(found):
        raise FormatError(f"provenance {path}: a file is listed twice")
    return found


def _entry(values: dict[str, object]) -> TrainingOnly:
    sources = values["derived_from"]
    if not isinstance(sources, list) or not sources:
        raise ValueError(f"{values.get('path')}: derived_from names no text")
    path, size = values["path"], values["bytes"]
    if not isinstance(path, str) or path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(f"path {path!r} does not stay in the folder")
    if type(size) is not int or size < 0:
        raise ValueError(f"{path}: bytes is {size!r}")
    texts = tuple(Source(str(source["name"]), _digest(source["sha256"])) for source in sources)
    return TrainingOnly(path, size, _digest(values["sha256"]), texts)


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is not a hex SHA-256")
    return value


def check(entry: TrainingOnly, size: int, sha256: str) -> None:
    """Check a file against its entry in the manifest.

    Raises:
        MismatchError: size or SHA-256 differ.
    """
    if (size, sha256) != (entry.bytes, entry.sha256):
        raise MismatchError(
            f"provenance: {entry.path} has {size} bytes and SHA-256 {sha256[:16]}…, the manifest says {entry.bytes} "
            f"and {entry.sha256[:16]}…; describe the file that is there"
        )
