"""The commands for text: `data prepare`, `data info`, `data fetch` and `tokenizer train`."""

import os
import time
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import typer

from codec import console

JSON = typer.Option(False, "--json", help="Print exactly one JSON object on stdout.")
INPUTS = typer.Argument(
    ..., metavar="INPUT...", help="JSON Lines (.jsonl, also .xz, .gz, .zst), .txt, .parquet, or folders of those."
)
MAX_PROCESSES = 16
"""Default limit: 16 processes at 5 MB/s tokenize about as fast as one process reads zstandard."""

BYTES_A_PROCESS = 10_000_000
"""Input bytes for each process by default: starting a process takes about as long as tokenizing these."""


data = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Text to token shards; describe shards; the challenge's data."
)
tokenizers = typer.Typer(no_args_is_help=True, add_completion=False, help="Lossless SentencePiece models.")
tokenizers.callback()(lambda: None)  # a group of one command keeps the command's name only if it has a callback


@data.command("prepare")
def prepare(
    inputs: list[Path] = INPUTS,
    tokenizer: Path = typer.Option(..., help="The tokenizer: a .model file of SentencePiece or of a run folder."),
    output: Path = typer.Option(..., "-o", "--output", help="New folder for the shards."),
    val_documents: int = typer.Option(0, min=0, help="Documents at the beginning that form the validation split."),
    processes: int | None = typer.Option(None, min=1, help="Tokenizing processes; by default by input size."),
    tokens_per_shard: int = typer.Option(
        100_000_000, min=1, max=(1 << 31) - 1, help="Length of a shard; the challenge's is 100,000,000."
    ),
    without: list[Path] = typer.Option(
        [], help="Held-out text: training documents that share 13 words with it are left out; may be given again."
    ),
    as_json: bool = JSON,
) -> None:
    """Tokenize documents into shards of the challenge's format."""
    from codec.files import read_bytes
    from codec.model.byte_pairs import open_tokenizer
    from trainer.data.documents import input_bytes
    from trainer.data.prepare import prepare as run

    model = open_tokenizer(read_bytes(tokenizer, "tokenizer"))
    start = time.perf_counter()
    size = sum(map(input_bytes, inputs))
    processes = processes or min(os.cpu_count() or 1, MAX_PROCESSES, 1 + size // BYTES_A_PROCESS)
    with console.progress("tokenize", size, "B") as advance:
        manifest = run(inputs, model, output, val_documents, processes, tokens_per_shard, advance, without)
    if left_out := manifest.get("left_out"):
        console.notes.print(f"left out: {left_out['documents']:,} documents, {left_out['text_bytes']:,} bytes")
    _report(manifest, output, time.perf_counter() - start, as_json)


@data.command("info")
def info(
    paths: list[Path] = typer.Argument(..., metavar="PATH...", help="Shards, or folders of them."),
    tokenizer: Path | None = typer.Option(None, help="The tokenizer of the shards; given, bytes are counted too."),
    as_json: bool = JSON,
) -> None:
    """Check shards and count their tokens, documents and bytes."""
    from codec.errors import FormatError
    from codec.files import read_bytes
    from codec.model.byte_pairs import open_tokenizer
    from trainer.data.documents import document_files, input_bytes
    from trainer.data.shards import describe_shard

    model = open_tokenizer(read_bytes(tokenizer, "tokenizer")) if tokenizer else None
    files = [file for path in paths for file in document_files(path) if path.is_file() or file.suffix == ".bin"]
    if not files:
        raise FormatError(f"{', '.join(map(str, paths))}: no shards; expected files that end in .bin")
    infos = []
    with console.progress("count", sum(map(input_bytes, files)), "B") as advance:
        for file in files:
            infos.append(describe_shard(file, model))
            advance(file.stat().st_size)
    counts = {name: sum(getattr(i, name) for i in infos) for name in ("tokens", "documents")}
    result = {
        **counts,
        "canonical_bytes": sum(i.canonical_bytes or 0 for i in infos) if model else None,
        "version": max(i.version for i in infos),
        "shards": [asdict(i) | {"path": str(i.path)} for i in infos],
    }
    rows = [(i.path.name, i.tokens, i.documents, i.canonical_bytes if model else "-") for i in infos]
    rows.append(("all", counts["tokens"], counts["documents"], result["canonical_bytes"] if model else "-"))
    console.emit(result, as_json, lambda: console.table(("shard", "tokens", "documents", "bytes"), rows))


@data.command("fetch")
def fetch(
    output: Path = typer.Option(..., "-o", "--output", help="Folder for the shards, new or of an earlier call."),
    variant: str = typer.Option("sp1024", help="Tokenizer of the shards."),
    train_shards: int = typer.Option(1, min=0, help="Training shards to download, 100,000,000 tokens (200 MB) each."),
    repo: str = typer.Option("willdepueoai/parameter-golf", help="Data set on the hub."),
    as_json: bool = JSON,
) -> None:
    """Download the challenge's shards and tokenizer; HF_ENDPOINT names another hub."""
    from trainer.data.fetch import fetch as run

    start = time.perf_counter()
    # The hub library shows a bar for each file.
    manifest = run(output, variant, train_shards, repo)
    _report(manifest, output, time.perf_counter() - start, as_json)


@tokenizers.command("train")
def train(
    inputs: list[Path] = INPUTS,
    output: Path = typer.Option(..., "-o", "--output", help="The .model file to write."),
    vocab_size: int = typer.Option(..., min=260, max=1 << 16, help="Tokens, 4 special tokens and 256 bytes included."),
    fold: bool = typer.Option(False, "--fold", help="Write capitals as marks, so that words share their tokens."),
    as_json: bool = JSON,
) -> None:
    """Train a tokenizer that keeps every character but U+2581 (▁), newlines and runs of spaces too."""
    from codec.files import atomic_write, check_output
    from trainer.data.documents import input_bytes, read_documents
    from trainer.data.tokenizer import train_tokenizer

    check_output(output, inputs)
    start = time.perf_counter()
    with console.progress("read text", sum(map(input_bytes, inputs)), "B") as advance:
        documents = chain.from_iterable(read_documents(path, advance=advance) for path in inputs)
        tokenizer = train_tokenizer(documents, vocab_size, fold)
    with atomic_write(output) as file:
        file.write(tokenizer.model)
    result = {
        "output": str(output),
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256,
        "bytes": len(tokenizer.model),
        "seconds": time.perf_counter() - start,
    }
    console.emit(result, as_json)


def _report(manifest: dict, output: Path, seconds: float, as_json: bool) -> None:
    rows = [
        (name, len(split["files"]), split["documents"], split["tokens"], split["canonical_bytes"])
        for name, split in manifest["splits"].items()
    ]
    headers = ("split", "shards", "documents", "tokens", "bytes")
    console.emit({"output": str(output), **manifest, "seconds": seconds}, as_json, lambda: console.table(headers, rows))
