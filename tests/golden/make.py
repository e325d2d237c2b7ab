"""Make golden files: `python -m tests.golden.make [--replace] [NAME...]`, by default all that are not there.

A golden file is read for good, so one that is there is left alone, and one that is named is refused, without --replace.
`manifest.json` has the SHA-256 of each file and of what it holds when decoded, and which pack an archive needs.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import codec
from codec.archive.members import Kind
from codec.archive.reader import ArchiveReader
from codec.pack.parts.tensors import to_bytes
from codec.pack.reader import Pack
from tests.golden.archives import ARCHIVES
from tests.golden.packs import PACKS

FOLDER = Path(__file__).resolve().parent / "files"
MANIFEST = FOLDER.parent / "manifest.json"
SHIPPED = FOLDER.parents[2] / "artifacts" / "models"


def open_named(name: str | None) -> Pack | None:
    """Open a golden pack, or else the one of that name that ships; None for no name."""
    if name is None:
        return None
    path = FOLDER / f"{name}.pack"
    return codec.open(path if path.exists() else SHIPPED / f"{name}.pack")


def digest(parts: Iterator[bytes]) -> str:
    """SHA-256 of parts, each behind its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def pack_content(pack: Pack) -> Iterator[bytes]:
    """All that a pack holds, decoded."""
    for name, tensor in pack.state_dict().items():
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield to_bytes(tensor).tobytes()
    beside = [pack.metadata, pack.twins, pack.recall and pack.recall.to_json()]
    yield json.dumps([*beside, pack.config and pack.config.to_json()], sort_keys=True).encode()
    yield pack.tokenizer.model if pack.tokenizer else b""
    for name, content in pack.files.items():
        yield name.encode()
        yield content


def archive_content(data: bytes, pack: Pack | None) -> Iterator[bytes]:
    """All that an archive holds, decoded: its documents, then its files, folders and links."""
    reader = ArchiveReader(BytesIO(data), pack)
    yield from reader.iterate()
    for entry in reader.entries:
        member = entry.member
        told = [member.name, member.kind.name, member.mode, member.mtime, member.target, entry.size]
        yield json.dumps(told).encode()
        if member.kind in (Kind.FILE, Kind.JSON_LINES):
            yield reader.open(member.name).read()


def decoded(name: str, pack: str | None = None) -> str:
    """The digest of what a golden file holds; `pack` names the pack of an archive."""
    data = (FOLDER / name).read_bytes()
    return digest(pack_content(codec.open(data)) if name.endswith(".pack") else archive_content(data, open_named(pack)))


def made(name: str) -> bytes:
    """The bytes of a golden file, made anew."""
    stem = name.rpartition(".")[0]
    if name.endswith(".pack"):
        return PACKS[stem]()
    recipe = ARCHIVES[stem]
    with tempfile.TemporaryDirectory() as folder:
        return recipe.make(open_named(recipe.pack), Path(folder))


def write(name: str) -> dict[str, Any]:
    """Make a golden file; return its entry of the manifest."""
    data = made(name)
    (FOLDER / name).write_bytes(data)
    told = {} if name.endswith(".pack") else {"pack": ARCHIVES[name.rpartition(".")[0]].pack}
    return {**told, "sha256": hashlib.sha256(data).hexdigest(), "decoded": decoded(name, **told)}


def main(words: list[str]) -> int:
    replace, names = "--replace" in words, [word for word in words if word != "--replace"]
    known = [*(f"{name}.pack" for name in PACKS), *(f"{name}.upz" for name in ARCHIVES)]
    there = {path.name for path in FOLDER.iterdir()}
    if wrong := sorted({*names} - {*known}):
        print(f"{wrong}: no golden files; they are {known}")
        return 2
    if not replace and (wrong := sorted(there & {*names})):
        print(f"{wrong}: they are there, and read for good; --replace makes them anew")
        return 2
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    for name in names or [name for name in known if replace or name not in there]:
        manifest[name] = write(name)
        print(f"{name}: {(FOLDER / name).stat().st_size} bytes", flush=True)
        MANIFEST.write_text(json.dumps({name: manifest[name] for name in known if name in manifest}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
