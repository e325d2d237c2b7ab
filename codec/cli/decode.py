"""Define the commands that read archives: decode and salvage."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from codec import startup
from codec.archive import SUFFIX
from codec.cli.encode import NAMES, STANDARD, opened
from codec.cli.options import (
    Device,
    Force,
    Json,
    Quiet,
    Ray,
    Remove,
    Stdout,
    Threads,
    Verbose,
    check_device,
    set_threads,
)
from codec.console import CheckFailed, Stopped, complain, emit, notes, progress, say, table, two_columns
from codec.errors import CodecError, MismatchError, OutputError, named_archive

if TYPE_CHECKING:
    from codec.archive.reader import ArchiveReader

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The pack, if it is neither in the store nor beside the archive."),
]


def decode(
    archives: Annotated[list[Path] | None, typer.Argument(help="Archives, or - for standard input.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file, or the folder for several; by default without .upz. - for stdout."
        ),
    ] = None,
    stdout: Stdout = False,
    force: Force = False,
    remove: Remove = False,
    model: Model = None,
    test: Annotated[bool, typer.Option("--test", "-t", help="Decode, and write nothing.")] = False,
    listing: Annotated[bool, typer.Option("--list", "-l", help="List files and sizes; nothing is decoded.")] = False,
    file: Annotated[str | None, typer.Option("--file", help="Decode this file of the archive alone.")] = None,
    byte_range: Annotated[str | None, typer.Option("--bytes", metavar="A:B", help="Of FILE, bytes A to B.")] = None,
    document: Annotated[
        list[int] | None, typer.Option(help="Decode this document alone (counted from 0); repeat it for several.")
    ] = None,
    special_bits: Annotated[bool, typer.Option(help="Restore setuid, setgid and sticky bits, too.")] = False,
    device: Device = "cpu",
    ray: Ray = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Restore the files of archives, list or test them."""
    from codec.files import check_output

    notes.quiet = quiet
    paths = archives or [STANDARD]
    if not archives and sys.stdin is not None and sys.stdin.isatty():
        raise CodecError("nothing to decode: pass archives, or - for standard input")
    single = output is not None or file is not None or bool(document)
    if single and len(paths) > 1:
        raise CodecError(f"{len(paths)} archives: -o, --file and --document take one; pass one archive")
    if listing:
        _list(paths, as_json)
        return
    jobs = [(path, STANDARD if stdout or test else output or _target(path, single)) for path in paths]
    for path, target in jobs:
        if target == STANDARD and as_json and not test:
            raise CodecError("--json with standard output: both want it; pass a file")
        if target != STANDARD and not target.is_dir():
            check_output(target, [path] if path != STANDARD else [], force)
    set_threads(threads)
    name, results = check_device(device, ray), []
    for path, target in jobs:
        try:
            with _reader(path, target, model, name) as reader:
                if target.is_dir() and (not reader.is_tree or (single and (file or document))):
                    check_output(target)
                results.append(_decode(reader, path, target, test, file, byte_range, document or [], special_bits))
        except CodecError as error:
            if len(jobs) == 1:
                raise
            complain(str(error))
            continue
        if verbose or test:
            say(f"{path}: {results[-1]['text_bytes']:,} bytes" + (", ok" if test else f" in {target}"))
        if remove and path != STANDARD and not test:
            path.unlink()
    if results and (as_json or (len(jobs) == 1 and jobs[0][1] != STANDARD)):
        total = {key: sum(result[key] for result in results) for key in results[0]}
        emit(total, as_json, lambda: two_columns({NAMES.get(key, key): value for key, value in total.items()}))
    if len(results) < len(jobs):
        raise CodecError(f"{len(jobs) - len(results)} of {len(jobs)} archives were not decoded")


def _target(path: Path, single: bool) -> Path:
    """Return the path that an archive is decoded to, if no output is named; errors are of what is no archive, too."""
    from codec.archive.format import read_header

    if path == STANDARD or single:
        return STANDARD
    if path.suffix != SUFFIX or not path.stem:
        with seekable(path) as stream, named_archive(path):
            read_header(stream)
        raise OutputError(f"{path}: its name does not end in {SUFFIX}; pass the output with -o")
    target = path.with_suffix("")
    return target.absolute() if target == STANDARD else target


def _decode(
    reader: "ArchiveReader",
    path: Path,
    target: Path,
    test: bool,
    file: str | None,
    byte_range: str | None,
    documents: list[int],
    special: bool,
) -> dict[str, Any]:
    import time

    from codec.archive.decode_files import decode_documents, decode_file, decode_files

    begin, started = time.perf_counter(), startup.seconds()
    out = nullcontext(_Nowhere()) if test else opened(target) if target == STANDARD else nullcontext(target)
    try:
        with out as place, progress("decoding", int(reader.contents.lengths.sum()), "byte") as bar, named_archive(path):
            if file is not None:
                first, last = _range(byte_range)
                size, count = decode_file(reader, file, first, last, place), 1  # type: ignore[arg-type]
            elif documents:
                size, count = decode_documents(reader, documents, place, bar), len(documents)  # type: ignore[arg-type]
            else:
                size, count = decode_files(reader, place, special, bar), len(reader)  # type: ignore[arg-type]
    except Stopped as stopped:
        stopped.add_note("the output is cut off" if target == STANDARD and not test else "nothing was written")
        raise
    seconds = time.perf_counter() - begin
    coding = seconds - (startup.seconds() - started)
    return {"documents": count, "text_bytes": size, "seconds": seconds, "coding_seconds": coding}


def _range(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 0, None
    first, colon, last = text.partition(":")
    if not colon or not (first or "0").isdigit() or not (last or "0").isdigit():
        raise CodecError(f"bytes {text!r}: expected FIRST:LAST, such as 0:100 or 100:")
    return int(first or 0), int(last) if last else None


class _Nowhere:
    """A stream that drops what is written."""

    def write(self, data: bytes) -> int:
        return len(data)


@contextmanager
def seekable(path: Path) -> Iterator[BinaryIO]:
    """Open an archive so that it can be read in any order: a pipe is copied to a temporary file."""
    from codec.files import open_binary

    if path == STANDARD and sys.stdin is None:
        raise CodecError("standard input is closed; pass an archive")
    with nullcontext(sys.stdin.buffer) if path == STANDARD else open_binary(path, "archive") as stream:
        if stream.seekable() and path != STANDARD:
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            while block := stream.read(1 << 20):
                copy.write(block)
            copy.seek(0)
            yield copy


@contextmanager
def _reader(path: Path, target: Path, model: str | None, device: str) -> Iterator["ArchiveReader"]:
    """Open the reader of an archive and its pack. Raises OutputError where the target is the pack."""
    from codec.archive.reader import ArchiveReader
    from codec.cli.options import open_pack
    from codec.files import check_output

    with seekable(path) as stream:
        pack = find_pack(stream, path, model)
        if pack and target != STANDARD and not target.is_dir():
            check_output(target, [pack])
        opened = open_pack(pack) if pack else None
        with named_archive(path):
            reader = ArchiveReader(stream, opened, device)
        yield reader


def find_pack(stream: BinaryIO, path: Path, model: str | None) -> Path | None:
    """Find the pack that an archive needs; None where the archive needs no pack or holds its pack.

    Raises:
        MismatchError: no folder has the pack.
        FormatError: there is no pack of the name `model`.
    """
    from codec.archive.format import embedded_pack, read_contents
    from codec.pack import store

    if model is not None:
        return store.find(model, store.FOLDERS)
    with named_archive(path):
        contents = read_contents(stream)
        wanted = contents.header.pack
        if wanted is None or embedded_pack(stream, contents) is not None:
            return None
    folders = [*store.FOLDERS, *([] if path == STANDARD else [path.resolve().parent])]
    found = store.find_hash(wanted.hex(), folders)
    if found is None:
        raise MismatchError(
            f"{path}: made with the pack whose SHA-256 begins with {wanted.hex()}, which is in none of "
            f"{', '.join(map(str, folders))}; pass that pack with --model"
        )
    return found


def _list(paths: list[Path], as_json: bool) -> None:
    from codec.archive.reader import ArchiveReader

    found: list[dict[str, Any]] = []
    for path in paths:
        with seekable(path) as stream, named_archive(path):
            reader = ArchiveReader(stream)
            files = [
                {"name": e.member.name, "kind": e.member.kind.name.lower(), "bytes": e.size, "target": e.member.target}
                for e in reader.entries
            ]
            size, text = stream.seek(0, 2), reader.total_bytes
            pack = reader.contents.header.pack
            found.append(
                {
                    "archive": str(path),
                    "archive_bytes": size,
                    "text_bytes": text,
                    "ratio": text / size,
                    "documents": len(reader),
                    "pack": pack.hex() if pack else None,
                    "files": files,
                }
            )
    rows: list[tuple[Any, ...]] = []
    for about in found:
        names = [(f"{file['name']} -> {file['target']}" if file["target"] else file["name"]) for file in about["files"]]
        rows += [(name, file["bytes"], "") for name, file in zip(names, about["files"], strict=True)]
        rows.append(
            (f"{about['archive']}, {about['archive_bytes']:,} bytes", about["text_bytes"], f"{about['ratio']:.3f}")
        )
    emit(found[0] if len(found) == 1 else {"archives": found}, as_json, lambda: table(["file", "bytes", "ratio"], rows))


def salvage(
    archive: Annotated[Path, typer.Argument(help="A damaged archive.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    model: Model = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Restore what a damaged archive still holds; status 1 if anything is lost."""
    from codec.archive.format import read_header
    from codec.archive.whole.salvage import salvage as restore
    from codec.cli.options import open_pack
    from codec.pack import store

    with seekable(archive) as stream:
        with named_archive(archive):
            wanted = read_header(stream).pack
        path = store.find_hash(wanted.hex(), [*store.FOLDERS, archive.resolve().parent]) if wanted else None
        named = model or path
        pack = open_pack(named) if named else None
        with progress("salvaging", None, "files or records") as bar, named_archive(archive):
            found = restore(stream, pack, output, check_device(device), bar)
    for line in found.lost:
        say(f"lost: {line}")
    result = {
        "files": len(found.files),
        "records": found.records,
        "text_bytes": found.text_bytes,
        "lost": len(found.lost),
    }
    emit(result, as_json)
    if found.lost:
        kept = len(found.files) + found.records
        rest = f"the other {kept:,} are in {output}" if kept else f"nothing could be restored, and {output} is empty"
        raise CheckFailed(f"{len(found.lost):,} files or records are lost; {rest}")
