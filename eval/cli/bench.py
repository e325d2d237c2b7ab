"""Define the command `bench`, which compares archives with general-purpose compressors."""

from pathlib import Path
from typing import Annotated

import typer

from codec import console


def bench(
    pack: Annotated[Path, typer.Argument(help="The pack to compress with.")],
    docs: Annotated[list[Path], typer.Option(help="Text: JSON Lines, plain text or parquet; repeatable.")],
    size: Annotated[
        int, typer.Option("--bytes", min=1, help="Bytes to take of each text, in whole documents.")
    ] = 300_000,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A folder for bench.json and bench.svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compress and restore text with a pack and with other compressors: bytes, and speed both ways."""
    import json

    from codec.cli.options import open_pack
    from codec.files import write_files
    from eval.bench.plots import ratio_against_speed
    from eval.bench.text import baselines, measure
    from eval.figures import svg

    opened = open_pack(pack)
    texts = {path.name.partition(".")[0]: cut(path, size) for path in docs}
    rows = measure(texts, opened, lambda what: console.notes.print(f"underpar: {what}"))
    missing = baselines()[1]
    result = {"rows": [row.to_json() for row in rows], "missing": missing}
    if output:
        picture = svg(ratio_against_speed(rows))
        write_files(output, {"bench.json": json.dumps(result).encode(), "bench.svg": picture})
    heads = ["text", "compressor", "bytes", "ratio", "with model", "encode kB/s", "decode kB/s"]
    lines = [
        (r.text, r.name, r.bytes, r.ratio, r.ratio_with_model, *(r.text_bytes / 1e3 / s for s in both))
        for r in rows
        for both in [(r.encode_seconds, r.decode_seconds)]
    ]
    console.emit(result, as_json, lambda: console.table(heads, lines))
    for name, why in missing.items():
        console.notes.print(f"underpar: without {name}: {why}")


def cut(path: Path, size: int) -> list[bytes]:
    """Read the first documents of a text: up to `size` bytes, and at least one document."""
    from trainer.data.documents import read_documents

    documents: list[bytes] = []
    for document in read_documents(path):
        if documents and sum(map(len, documents)) + len(document) > size:
            break
        documents.append(document)
    return documents
