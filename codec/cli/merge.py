"""Define the command that joins archives: merge."""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.encode import STANDARD, opened
from codec.cli.options import Force, Json, Quiet
from codec.console import emit, notes, progress
from codec.errors import CodecError


def merge(
    archives: Annotated[list[Path], typer.Argument(help="Archives, in the order in which their files will come.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to make. - for stdout.")],
    folders: Annotated[
        bool, typer.Option("--folders", help="Put the files of each archive below a folder of its name.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join archives into one without coding again; all must be of one pack, or need none."""
    from codec.archive.whole import merge as merging
    from codec.files import check_output, is_stream

    notes.quiet = quiet
    if output == STANDARD and as_json:
        raise CodecError("--json with standard output: both want it; pass a file")
    if output != STANDARD:
        check_output(output, archives, force)
    total = sum(path.stat().st_size for path in archives if path.is_file())
    with progress("merging", total, "byte") as advance:
        if output == STANDARD or is_stream(output):
            with opened(output) as out:
                merging.merge_stream(archives, out, folders, advance)
            return
        done = merging.merge(archives, output, folders, advance)
    size = output.stat().st_size
    emit(
        {
            "archives": done.archives,
            "files": done.files,
            "documents": done.documents,
            "text_bytes": done.text_bytes,
            "archive_bytes": size,
        },
        as_json,
    )
