"""Define the commands for packs: pack, unpack, inspect. Those for text are in `codec.cli.encode` and `decode`."""

import json
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec.cli.encode import NAMES
from codec.cli.options import Json, open_pack
from codec.console import emit, notes, progress, readable, table, two_columns
from codec.errors import FormatError, OutputError, named_archive

if TYPE_CHECKING:
    from codec.pack.reader import Pack
    from codec.pack.writer import Extras
    from codec.quantization.calibration import Calibration


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder, or a file of weights.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The pack to write, - for stdout.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Most bytes of the pack, such as 16000000.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model, if not beside the checkpoint.")] = None,
    calibration: Annotated[
        str, typer.Option(help="File of second moments, or none; otherwise the one beside the checkpoint.")
    ] = "",
    lossless: Annotated[list[str], typer.Option(help="Tensors to keep exactly, as a pattern such as '*.bias'.")] = [],  # noqa: B006
    skip: Annotated[list[str], typer.Option(help="Tensors to leave out, as a pattern.")] = [],  # noqa: B006
    bits: Annotated[list[str], typer.Option(help="Bits a weight of tensors, as PATTERN=N.")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what the pack would hold; write none.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Compress the weights of a checkpoint into a pack; a calibration beside it says where a budget's bits matter."""
    import sys
    import tempfile
    import time

    import codec
    from codec.files import atomic_write, check_output, is_stream
    from codec.pack.plan import Rules
    from codec.pack.writer import Extras, PackJob

    if output is None and not dry_run:
        raise OutputError("output: none named; pass -o NAME.pack, or --dry-run to write none")
    if output is not None and str(output) != "-" and not dry_run:
        check_output(output, [checkpoint, *([tokenizer] if tokenizer else [])], force)
    begin = time.perf_counter()
    rules = Rules(tuple(lossless), tuple(skip), _rates(bits))
    state, config, text_model, extras = _load(checkpoint, tokenizer)
    moments = _moments(checkpoint, calibration)
    if budget and config and not moments:
        notes.print("no calibration: every weight counts alike; `underpar calibrate` makes one")
    with progress("packing", None, "weights") as bar:
        folder = output.parent if output is not None and output.parent.is_dir() else None
        job = PackJob(state, config, text_model, moments, rules, extras or Extras({}, {}), folder, bar)
        written = job.run(budget)
    seconds = time.perf_counter() - begin
    if str(output) == "-" and not dry_run:
        written.copy_to(sys.stdout.buffer)
        return
    if output is not None and not dry_run:
        with atomic_write(output) as file:
            written.copy_to(file)
    with tempfile.NamedTemporaryFile() as copy:  # a dry run's pack may be larger than memory, too
        if output is None or dry_run or is_stream(output):
            written.copy_to(copy)
            copy.flush()
            output = Path(copy.name)
        result = {**describe(codec.open(output)), "seconds": seconds}
    if job.plan.skipped:
        result["skipped"] = job.plan.skipped
    emit(result, as_json, lambda: _shown(result))


def _load(checkpoint: Path, tokenizer: Path | None) -> "tuple[Any, Any, Any, Extras | None]":
    """Return the state dict, and either config and tokenizer, of a model of ours, or the files beside the weights."""
    from codec.model.checkpoint import WEIGHTS, load_checkpoint
    from codec.model.config import metadata_config
    from codec.model.weight_files import open_weights
    from codec.pack.writer import Extras

    found = open_weights(checkpoint)
    if metadata_config(found.metadata):
        loaded = load_checkpoint(checkpoint / WEIGHTS if checkpoint.is_dir() else checkpoint, tokenizer)
        return loaded.state_dict, loaded.config, loaded.tokenizer, None
    return found.tensors, None, None, Extras(found.metadata, found.beside())


def _moments(checkpoint: Path, calibration: str) -> "Calibration | None":
    from codec.quantization.calibration import FILE, load_calibration

    beside = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE
    if calibration == "none" or not (calibration or beside.is_file()):
        return None
    return load_calibration(Path(calibration) if calibration else beside)


def _rates(bits: list[str]) -> dict[str, float]:
    found = {}
    for entry in bits:
        pattern, _, number = entry.rpartition("=")
        try:
            found[pattern] = float(number)
        except ValueError:
            pattern = ""
        if not pattern:
            raise FormatError(f"--bits {entry}: expected PATTERN=N, such as '*.embed.*=8'")
    return found


def unpack(
    file: Annotated[Path, typer.Argument(help="A pack.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The .safetensors file to write, or a folder, which also gets the files beside the weights.",
        ),
    ],
    challenge: Annotated[bool, typer.Option(help="In the banks of the challenge's later scripts.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write the weights of a pack as safetensors: in a file, or in a folder as the one that they came from.

    A folder has the shards of the source, their index, and the files that came with the weights.
    """
    from safetensors.torch import save

    from codec.files import atomic_write, check_output, new_folder
    from codec.model.banks import to_challenge
    from codec.model.checkpoint import TOKENIZER, WEIGHTS
    from codec.model.families.folder import save_folder
    from codec.model.transformer import TransformerConfig
    from codec.model.weight_files import INDEX
    from codec.pack.unpack import save_tensors, save_weights

    opened = open_pack(file)
    as_folder = output.suffix != ".safetensors"
    if challenge and as_folder:
        raise OutputError(f"output {output}: --challenge writes one file; pass a name that ends with .safetensors")
    if not as_folder:
        check_output(output, [file], force)
        if opened.tokenizer:
            check_output(output.parent / TOKENIZER, [file], force)
    metadata = {"config": opened.config.to_json()} if opened.config else opened.metadata
    result: dict[str, Any] = {"output": str(output), "parameters": opened.parameter_count}
    with progress("unpacking", None, "weights") as bar:
        if as_folder:
            with new_folder(output, (INDEX if INDEX in opened.files else WEIGHTS) if force else None) as folder:
                if isinstance(opened.config, TransformerConfig):
                    save_folder(folder, opened.state_dict(), opened.config, opened.tokenizer)
                else:
                    files = {TOKENIZER: opened.tokenizer.model} if opened.tokenizer else opened.files
                    for name, content in files.items():
                        (folder / name).write_bytes(content)
                    save_weights(opened, folder, metadata, bar)
        elif challenge:
            with atomic_write(output) as stream:
                stream.write(save(to_challenge(opened.state_dict()), metadata=metadata))
        else:
            save_tensors(opened, output, metadata, advance=bar)
    if as_folder:
        emit(result, as_json)
        return
    if opened.tokenizer:
        with atomic_write(output.parent / TOKENIZER) as stream:
            stream.write(opened.tokenizer.model)
        result["tokenizer"] = str(output.parent / TOKENIZER)
    emit(result, as_json)


def inspect(
    file: Annotated[Path, typer.Argument(help="A pack or an archive.")],
    source: Annotated[
        Path | None,
        typer.Option(help="What a pack was made of: adds the squared error of each tensor, and of all inexact ones."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is inside a pack (bits for each tensor) or an archive."""
    from codec.archive.format import MAGIC
    from codec.archive.whole.description import describe as describe_archive
    from codec.files import open_binary
    from codec.pack.unpack import relative_errors

    with open_binary(file, "pack or archive") as stream:
        if stream.read(len(MAGIC)) == MAGIC:
            if source is not None:
                raise FormatError(f"archive {file}: --source is for packs")
            stream.seek(0)
            with named_archive(file):
                about = describe_archive(stream)
            emit(about, as_json, lambda: two_columns(_told(about)))
            return
    opened = open_pack(file)
    result = describe(opened)
    if source is not None:
        with progress("comparing", opened.parameter_count, "weights") as bar:
            sums = relative_errors(opened, _load(source, None)[0], bar)
        for tensor in result["tensors"]:
            error, norm = sums[tensor["name"]]
            tensor["relative_squared_error"] = error / norm if norm else float(error > 0)
        changed = [pair for pair in sums.values() if pair[0]]  # exact tensors, such as counters, may be large
        total = sum(norm for _, norm in changed)
        result["relative_squared_error"] = sum(error for error, _ in changed) / total if total else float(bool(changed))
    emit(result, as_json, lambda: _shown(result))


_KINDS = {
    "modelled": "modelled (by the model alone)",
    "stored": "stored (by general compressors)",
    "same": "same (equal to earlier ones)",
    "mixed": "mixed (by the model and context mixing)",
    "bytes": "bytes (by context mixing alone)",
}
"""Words for people by the tags of an archive's records, which are counted."""


def _told(about: dict[str, Any]) -> dict[str, Any]:
    """Return what is said about an archive, with names for people."""
    names = {**NAMES, **_KINDS, "window": "window (tokens)"}
    model = {"pack": "none: decoding needs no model", "window": "none", "adaptation": "none"}
    if about["pack"]:
        model = {} if about["window"] else {"window": "the model's own"}
    files = f"{len(about['files']):,}" if about["files"] else "without names"
    return {names.get(key, key): value for key, value in {**about, "files": files, **model}.items()}


def _shown(result: dict[str, Any]) -> Any:
    """Make the table of a pack, with a column of errors where they are known."""
    known = "relative_squared_error" in result
    rows = [
        (t["name"], t["dtype"], "×".join(map(str, t["shape"])), f"{t['bits_per_weight']:.3f}", t["bytes"])
        + ((f"{t['relative_squared_error']:.2e}",) if known else ())
        for t in result["tensors"]
    ]
    columns = ["tensor", "dtype", "shape", "bits a weight", "bytes", *(["squared error"] if known else [])]
    shown = table(columns, rows)
    shown.caption = ", ".join(f"{k} {readable(v)}" for k, v in result.items() if not isinstance(v, (list, dict)))
    return shown


def describe(opened: "Pack") -> dict[str, Any]:
    """Return the sizes of a pack and of its tensors; the sizes of all tensors and of the header sum to the file's.

    Small tensors are compressed together; each is given a share by its uncompressed bytes.
    """
    from codec.pack.parts.dtypes import size_of

    sizes = {entry["name"]: sum(entry["parts"]) for entry in opened.manifest["tensors"]}
    first = 0
    for count, length in opened.manifest["batches"]:
        batch = opened.manifest["vectors"][first : first + count]
        plain = [size_of(e.get("kept", e["dtype"]), e["shape"]) for e in batch]
        ends = [round(length * end / max(1, sum(plain))) for end in accumulate(plain)]  # shares that add up
        sizes.update(zip((e["name"] for e in batch), (b - a for a, b in pairwise([0, *ends])), strict=True))
        first += count
    entries = [*opened.manifest["tensors"], *opened.manifest["vectors"]]
    tensors = [
        {
            "name": e["name"],
            "dtype": e["dtype"],
            "shape": e["shape"],
            "bits_per_weight": 8 * sizes[e["name"]] / max(1, prod(e["shape"])),
            "bytes": sizes[e["name"]],
        }
        for e in entries
    ]
    return {
        "pack_bytes": opened.size,
        "parameters": opened.parameter_count,
        "bits_per_parameter": 8 * opened.size / max(1, opened.parameter_count),
        "sha256": opened.sha256,
        "config": json.loads(opened.config.to_json()) if opened.config else None,
        "tensors": tensors,
        "other_bytes": opened.size - sum(sizes.values()),
        "twins": opened.twins,
        "files": {name: len(content) for name, content in opened.files.items()},
    }
