"""The commands for text: encode, decode."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import Adapt, Device, Json, Model, check_device, open_pack
from codec.console import emit, notes, progress
from codec.text.policy import Adaptation

STANDARD = "-"


def encode(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Files, folders, or - for standard input; .jsonl by the `text` of its lines."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to write.")],
    model: Model,
    append: Annotated[bool, typer.Option("--append", help="Add the inputs to the archive that is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run ended.")] = False,
    adapt: Adapt = Adaptation.NONE,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress text, or any files, with a pack into an archive."""
    import time

    from codec.archive.encode_files import encode_files, partial
    from codec.archive.members import find_sources, total_bytes

    begin = time.perf_counter()
    before = output.stat().st_size if append and output.exists() else 0
    opened, (sources, tree) = open_pack(model), find_sources(inputs, output)
    try:
        with _stoppable() as check, _bar("encoding", total_bytes(sources), check) as show:
            done = encode_files(
                sources,
                tree,
                output,
                opened,
                check_device(device),
                append,
                resume,
                adapt,
                lambda tally, amount: show(amount, tally.coded_bytes / max(1, tally.text_bytes)),
            )
    except BaseException:
        if partial(output).exists():
            note = f"underpar: what is done is kept in {partial(output)}; go on with --resume"
            notes.print(note, markup=False, highlight=False, soft_wrap=True)
        raise
    archived = output.stat().st_size
    emit(
        {
            "files": len(sources),
            "documents": done.documents,
            "text_bytes": done.text_bytes,
            "resumed_bytes": done.resumed,
            "archive_bytes": archived,
            "tokens": done.tokens,
            "bits_per_byte": 8 * (archived - before) / max(1, done.text_bytes),
            "seconds": time.perf_counter() - begin,
            "coding_seconds": done.seconds,
        },
        as_json,
    )


def decode(
    file: Annotated[Path, typer.Argument(help="An archive.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file to write, the folder for several, or - for standard output."),
    ],
    model: Model,
    document: Annotated[
        list[int] | None, typer.Option(help="Decode this document alone (counted from 0); repeat it for several.")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Restore the text of an archive."""
    import time

    from codec.archive.decode_files import decode_files
    from codec.archive.reader import ArchiveReader
    from codec.errors import CodecError
    from codec.files import open_binary

    begin = time.perf_counter()
    standard = str(output) == STANDARD
    if standard and as_json:
        raise CodecError("--json with -o -: both want standard output; pass a file")
    opened = open_pack(model)
    with open_binary(file, "archive") as stream:
        reader = ArchiveReader(stream, opened, check_device(device))
        reader.coder.start()
        ready = time.perf_counter()
        with progress("decoding", file.stat().st_size, "byte") as advance:
            documents, size = decode_files(reader, sys.stdout.buffer if standard else output, document or (), advance)
    if standard:
        sys.stdout.buffer.flush()
    else:
        end = time.perf_counter()
        result = {"documents": documents, "text_bytes": size, "seconds": end - begin, "coding_seconds": end - ready}
        emit(result, as_json)


@contextmanager
def _stoppable() -> Iterator[Callable[[], None]]:
    """While the block runs, SIGINT and SIGTERM are raised by the check that it receives: not inside compiled code.

    A second SIGINT does not wait.
    """
    import signal

    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check() -> None:
        if signal.SIGTERM in caught:
            sys.exit(128 + signal.SIGTERM)
        if caught:
            raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, catch)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(what: str, total: int | None, check: Callable[[], None]) -> Iterator[Callable[[float, float], None]]:
    """As `console.progress`, for a total that may be unknown, with the ratio so far, and with a check each time."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")

        def show(amount: float, ratio: float) -> None:
            check()
            bar.advance(task, amount)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed or 0:,.0f} byte/s" + (f", {100 * ratio:.1f} % of the text" if ratio else ""))

        yield show
