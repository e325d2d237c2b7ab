"""The codec's commands for packs: pack, unpack, inspect. Those for text are in `codec.cli.text`."""

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec.cli.options import Json, open_pack
from codec.console import emit, notes, readable, table

if TYPE_CHECKING:
    from codec.pack.reader import Pack


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder or a .safetensors file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The pack to write.")],
    budget: Annotated[int | None, typer.Option(min=1, help="Most bytes that the pack may have.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model, if not beside the checkpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Compress the weights of a checkpoint into a pack; a calibration beside it says where a budget's bits matter."""
    import time

    import codec
    from codec.files import atomic_write, check_output
    from codec.model.checkpoint import load_checkpoint
    from codec.quantization.calibration import FILE, load_calibration

    check_output(output, [checkpoint, *([tokenizer] if tokenizer else [])])
    begin = time.perf_counter()
    loaded = load_checkpoint(checkpoint, tokenizer)
    beside = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE
    calibration = load_calibration(beside) if beside.is_file() else None
    if budget and not calibration:
        notes.print(f"no {FILE} beside the checkpoint: every weight counts alike; `underpar calibrate` makes one")
    text_model = loaded.tokenizer if loaded.config else None
    blob = codec.compress(loaded.state_dict, loaded.config, text_model, budget, calibration)
    with atomic_write(output) as file:
        file.write(blob)
    result = {**describe(codec.open(blob)), "seconds": time.perf_counter() - begin}
    emit(result, as_json)


def unpack(
    file: Annotated[Path, typer.Argument(help="A pack.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The .safetensors file to write, or a folder of transformers.",
        ),
    ],
    challenge: Annotated[bool, typer.Option(help="In the banks of the challenge's later scripts.")] = False,
    as_json: Json = False,
) -> None:
    """Write the weights of a pack as safetensors, and its tokenizer beside them."""
    from safetensors.torch import save

    from codec.files import atomic_write, check_output
    from codec.model.banks import to_challenge
    from codec.model.checkpoint import TOKENIZER
    from codec.model.families.folder import save_folder
    from codec.model.transformer import TransformerConfig

    check_output(output, [file])
    check_output(output.parent / TOKENIZER, [file])
    opened = open_pack(file)
    if isinstance(opened.config, TransformerConfig):
        save_folder(output, opened.state_dict(), opened.config, opened.tokenizer)
        emit({"folder": str(output), "parameters": opened.parameter_count}, as_json)
        return
    metadata = {"config": opened.config.to_json()} if opened.config else None
    state = to_challenge(opened.state_dict()) if challenge else opened.state_dict()
    with atomic_write(output) as stream:
        stream.write(save(state, metadata=metadata))
    result = {"file": str(output), "parameters": opened.parameter_count}
    if opened.tokenizer:
        with atomic_write(output.parent / TOKENIZER) as stream:
            stream.write(opened.tokenizer.model)
        result["tokenizer"] = str(output.parent / TOKENIZER)
    emit(result, as_json)


def inspect(
    file: Annotated[Path, typer.Argument(help="A pack or an archive.")],
    as_json: Json = False,
) -> None:
    """Say what is inside a pack (bits for each tensor) or an archive."""
    from codec.archive.format import MAGIC
    from codec.archive.reader import describe as describe_archive
    from codec.files import open_binary

    with open_binary(file, "pack or archive") as stream:
        if stream.read(len(MAGIC)) == MAGIC:
            stream.seek(0)
            emit(describe_archive(stream), as_json)
            return
    result = describe(open_pack(file))
    rows = [
        (t["name"], "×".join(map(str, t["shape"])), f"{t['bits_per_weight']:.3f}", t["bytes"])
        for t in result["tensors"]
    ]
    shown = table(["tensor", "shape", "bits a weight", "bytes"], rows)
    shown.caption = ", ".join(f"{k} {readable(v)}" for k, v in result.items() if not isinstance(v, (list, dict)))
    emit(result, as_json, lambda: shown)


def describe(opened: "Pack") -> dict[str, Any]:
    """Sizes of a pack and of each of its tensors; vectors are counted uncompressed."""
    tensors = [
        {
            "name": e["name"],
            "shape": e["shape"],
            "bits_per_weight": e["bits"] / max(1, prod(e["shape"])),
            "bytes": round(e["bits"] / 8),
        }
        for e in opened.manifest["tensors"]
    ]
    for entry in opened.manifest["vectors"]:
        size = opened.vectors[entry["name"]].nbytes
        bits = 8 * size / max(1, prod(entry["shape"]))
        tensors.append({"name": entry["name"], "shape": entry["shape"], "bits_per_weight": bits, "bytes": size})
    return {
        "pack_bytes": opened.size,
        "parameters": opened.parameter_count,
        "bits_per_parameter": 8 * opened.size / max(1, opened.parameter_count),
        "sha256": opened.sha256,
        "config": json.loads(opened.config.to_json()) if opened.config else None,
        "tensors": tensors,
    }
