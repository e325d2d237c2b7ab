"""Define the command that makes archives: encode."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from codec import startup
from codec.archive import SUFFIX
from codec.cli.options import (
    Adapt,
    Device,
    Force,
    Json,
    Model,
    Quiet,
    Ray,
    Remove,
    Stdout,
    Threads,
    Verbose,
    check_device,
    named_pack,
    set_threads,
)
from codec.console import Stopped, check_stopped, emit, notes, progress, say, two_columns
from codec.errors import CodecError, OutputError
from codec.text.policy import Adaptation

if TYPE_CHECKING:
    from codec.archive.encode_files import Settings

STANDARD = Path("-")
NO_MODEL = "none"
NAMES = {
    "documents": "documents (decodable alone)",
    "model_bytes": "text_bytes with the model",
    "tokens": "tokens with the model",
}
"""Words for people in place of the names of entries."""


def encode(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, folders, or - for standard input (the default where that is no terminal)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="One archive of all inputs; by default INPUT.upz for each. - for stdout."),
    ] = None,
    stdout: Stdout = False,
    force: Force = False,
    remove: Remove = False,
    model: Model = "small",
    append: Annotated[bool, typer.Option("--append", help="Add the inputs to the archive that is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    adapt: Adapt = Adaptation.NONE,
    independent: Annotated[
        bool,
        typer.Option(help="Make every line and piece decodable alone, at the cost of size; damage then loses little."),
    ] = False,
    include_model: Annotated[
        bool, typer.Option(help="Put the pack into the archive: decoding needs no other file.")
    ] = False,
    restart_every: Annotated[
        int, typer.Option(min=4096, help="Bytes of a block: all are decoded to reach any, and damage loses all.")
    ] = 1 << 20,
    device: Device = "cpu",
    ray: Ray = None,
    threads: Threads = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Compress files, folders or standard input into archives (.upz); any bytes come back."""
    from codec.files import check_output

    notes.quiet = quiet
    paths = inputs or [STANDARD]
    if not inputs and sys.stdin is not None and sys.stdin.isatty():
        raise CodecError("nothing to encode: pass files, or - for standard input")
    jobs = _jobs(paths, STANDARD if stdout else output)
    if as_json and any(target == STANDARD for _, target in jobs):
        raise CodecError("--json with standard output: both want it; pass a file")
    settings, read = _settings(model, adapt, check_device(device, ray), independent, include_model, restart_every)
    for sources, target in jobs:
        if target != STANDARD:
            check_output(target, [*(path for path in sources if path != STANDARD), *read], force or append)
        elif sys.stdout is not None and sys.stdout.isatty() and not force:
            raise OutputError("standard output is a terminal: pass -o FILE, or --force")
        if remove and any(path.is_dir() for path in sources):
            raise CodecError("--rm with a folder: only files are removed; leave it out")
    set_threads(threads)
    results = []
    for sources, target in jobs:
        results.append(_encode(sources, target, settings, append, resume, force))
        if verbose or (len(jobs) > 1 and not as_json):
            done = results[-1]
            say(f"{', '.join(map(str, sources))}: {done['text_bytes']:,} bytes to {done['archive_bytes']:,}")
        if remove:
            for path in sources:
                if path != STANDARD:
                    path.unlink()
    if all(target != STANDARD for _, target in jobs) and (len(jobs) == 1 or as_json):
        total = _total(results)
        emit(total, as_json, lambda: two_columns(_told(total, settings)))


def _jobs(paths: list[Path], output: Path | None) -> list[tuple[list[Path], Path]]:
    """Return the inputs of each archive, and its path."""
    if output is not None:
        return [(paths, output)]
    if paths == [STANDARD]:
        return [(paths, STANDARD)]
    if STANDARD in paths:
        raise CodecError("standard input among files: pass -o OUTPUT for an archive of all")
    return [([path], path.with_name((path.name or path.resolve().name) + SUFFIX)) for path in paths]


def _settings(
    model: str, adapt: Adaptation, device: str, independent: bool, include: bool, block: int
) -> tuple["Settings", list[Path]]:
    """Return how files are coded, and the path of the pack."""
    import codec
    from codec.archive.encode_files import Settings
    from codec.files import read_bytes
    from codec.pack import store

    if model == NO_MODEL:
        return Settings(None, adapt, device, independent, block=block), []
    path = store.find(model, store.FOLDERS)
    blob = read_bytes(path, "pack")
    with named_pack(path):
        pack = codec.open(blob)
        pack.for_text()
    return Settings(pack, adapt, device, independent, blob if include else None, block), [path]


def _encode(
    paths: list[Path], target: Path, settings: "Settings", append: bool, resume: bool, force: bool
) -> dict[str, Any]:
    import time

    from codec.archive.encode_files import Tally, encode_files, encode_stream, partial
    from codec.archive.journal import is_empty
    from codec.archive.sources import find_sources, total_bytes
    from codec.files import is_stream

    begin, started = time.perf_counter(), startup.seconds()
    stream = target == STANDARD or is_stream(target)
    before = target.stat().st_size if append and target.exists() else 0
    sources = find_sources(paths, None if stream else target, say)
    journal = partial(target.resolve())
    if resume and (stream or is_empty(journal)):
        say(
            f"underpar: {'a stream has no journal' if stream else f'no journal {journal}'}: encoding from the beginning"
        )
    seen, total = Tally(), total_bytes(sources)
    with progress("encoding", total, "byte") as bar:

        def watch(tally: Tally, amount: float) -> None:
            nonlocal seen
            check_stopped()
            seen = tally
            done = f"{100 * tally.coded_bytes / tally.text_bytes:.1f} % of the text" if tally.text_bytes else ""
            bar(amount, done)

        try:
            if stream:
                with opened(target) as out:
                    counted = _Counting(out)
                    done = encode_stream(sources, counted, settings, watch)  # type: ignore[arg-type]
                size = counted.size
            else:
                done = encode_files(sources, target, settings, append, resume, force, watch)
                size = target.stat().st_size
        except Stopped as stopped:
            kept = (
                f"{seen.kept:,} of {total:,} bytes of the input are coded and"
                if seen.kept
                else "what was coded before is"
            )
            stopped.add_note(
                "nothing is kept that --resume could go on from"
                if stream or is_empty(journal)
                else f"{kept} kept in {journal}; go on with --resume"
            )
            raise
    seconds = time.perf_counter() - begin
    return {
        "files": done.files,
        "documents": done.documents,
        "text_bytes": done.text_bytes,
        "resumed_bytes": done.resumed,
        "archive_bytes": size,
        "model_bytes": done.model_bytes,
        "tokens": done.tokens,
        "bits_per_byte": 8 * (size - before) / max(1, done.text_bytes),
        "seconds": seconds,
        "coding_seconds": seconds - (startup.seconds() - started),
    }


def _total(results: list[dict[str, Any]]) -> dict[str, Any]:
    total = {key: sum(result[key] for result in results) for key in results[0]}
    total["bits_per_byte"] = sum(r["bits_per_byte"] * r["text_bytes"] for r in results) / max(1, total["text_bytes"])
    return total


def _told(result: dict[str, Any], settings: "Settings") -> dict[str, Any]:
    """Return a result with names for people."""
    without = {} if settings.pack else {"model_bytes": "0, without a model", "tokens": "0, without a model"}
    return {NAMES.get(key, key): value for key, value in {**result, **without}.items()}


class _Counting:
    """A stream that counts the bytes that are written."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.size = stream, 0

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def opened(target: Path) -> Iterator[BinaryIO]:
    """Open standard output, or a file that appears complete or not at all."""
    from codec.files import atomic_write, named

    if target != STANDARD:
        with atomic_write(target) as out:
            yield out
        return
    if sys.stdout is None:
        raise OutputError("standard output is closed; pass -o FILE")
    with named("standard output"):
        if not isinstance(raw := sys.stdout.buffer, io.RawIOBase):
            yield raw
            raw.flush()
            return
        stream = io.BufferedWriter(raw)  # with PYTHONUNBUFFERED; a raw stream may take only a part of what is written
        yield stream
        stream.flush()
        stream.detach()
