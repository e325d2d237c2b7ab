"""Define the commands that score models: `bpb`, `import`, `prove`, `report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from codec import console
from codec.cli.options import Adapt, Device, Ray, check_device
from codec.text.policy import Adaptation
from eval.score.windows import Policy


def bpb(
    model: Annotated[Path, typer.Argument(help="A run folder, .safetensors, .pack, or challenge .pt or .ptz.")],
    docs: Annotated[Path, typer.Option(help="Text, JSON Lines, parquet, or token shards (.bin, .bin.xz).")],
    policy: Annotated[Policy, typer.Option(help="Context that the model sees.")] = Policy.FLAT,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between windows. With policy document, windows replace sliding-window attention."),
    ] = None,
    targets: Annotated[int | None, typer.Option(min=1, help="Stop after N targets.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A SentencePiece .model, if MODEL has none.")] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Score on the Ray cluster at HOST:PORT; auto, or local."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a float model in bits per byte, with the challenge's accounting."""
    import time
    from contextlib import nullcontext

    import torch

    from eval.score.bpb import score
    from eval.score.cluster import runner_on
    from eval.score.models import load_model
    from eval.score.streams import measured_stream, stream_bytes

    loaded = load_model(model, tokenizer)
    network = loaded.float_model("cuda" if torch.cuda.is_available() and ray is None else "cpu")
    began = time.perf_counter()
    # Read one row more than needed: `flat` drops a tail that does not fill a row.
    enough = None if targets is None else targets + loaded.config.window + 1
    with console.progress("reading", stream_bytes(docs), "bytes") as advance:
        stream, sizes = measured_stream(docs, loaded.tokenizer, enough, advance)
    with (
        console.progress("scoring", min(targets or len(stream), len(stream)), "tokens") as advance,
        nullcontext() if ray is None else runner_on(loaded, ray, advance) as runner,
    ):
        result = score(network, loaded.tokenizer, stream, policy, stride, targets, advance, sizes, runner)
    if result.decoded_bytes != result.text_bytes:
        console.notes.print(
            f"the challenge's table counts {result.text_bytes:,} bytes, the decoded text has {result.decoded_bytes:,}",
        )
    console.emit(
        {
            "bpb": result.bpb,
            "loss_nats": result.loss_nats,
            "tokens": result.tokens,
            "text_bytes": result.text_bytes,
            "decoded_bytes": result.decoded_bytes,
            "policy": policy.value,
            "seconds": time.perf_counter() - began,
        },
        as_json,
    )


def import_model(
    model: Annotated[
        Path, typer.Argument(help="A folder of transformers, a .gguf, or a .pt or .ptz of the challenge's scripts.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run folder to make.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Entries of the config: loop_start=3 window=1024."),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The SentencePiece .model of the model's training.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a run folder of a language model of Llama's, Qwen's or GPT-2's family, or of a checkpoint or artifact of the
    challenge; nothing of either is run."""
    import json

    from codec.errors import CodecError
    from codec.model.checkpoint import WEIGHTS, save_checkpoint
    from codec.model.families.sources import is_source, load_source
    from eval.score.models import load_model
    from trainer.recipe import apply_override

    if (output / WEIGHTS).exists():
        raise CodecError(f"run {output}: it exists; choose another folder")
    settings: dict[str, dict[str, Any]] = {}
    for override in overrides or []:
        apply_override(settings, f"model.{override}")
    chosen = settings.get("model")
    loaded = load_source(model, chosen) if is_source(model) else load_model(model, tokenizer, chosen)
    if (asked := (chosen or {}).get("window", loaded.config.window)) != loaded.config.window:
        console.notes.print(f"underpar: a window of {loaded.config.window} tokens: {asked} is no multiple of 64")
    path = save_checkpoint(output, loaded.state_dict, loaded.config, loaded.tokenizer)
    console.emit(
        {
            "checkpoint": str(path),
            "parameters": sum(tensor.numel() for tensor in loaded.state_dict.values()),
            "config": json.loads(loaded.config.to_json()),
        },
        as_json,
    )


def prove(
    pack: Annotated[Path, typer.Argument(help="The pack to prove.")],
    docs: Annotated[Path, typer.Option(help="Text: JSON Lines, plain text, parquet, or token shards.")],
    documents: Annotated[int | None, typer.Option(min=1, help="Take only the first N documents.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the archive here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Save the proof in this run folder, for its report.")] = None,
    adapt: Adapt = Adaptation.NONE,
    device: Device = "cpu",
    ray: Ray = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Code text with a pack, decode the text in a fresh process, compare, and account for every bit."""
    from itertools import islice

    import codec
    from codec.cli.options import named_pack
    from codec.files import check_output, read_bytes
    from eval.proof import prove as proving
    from trainer.data.documents import read_documents

    if keep:
        check_output(keep, [pack, docs])
    blob = read_bytes(pack, "pack")
    with named_pack(pack):
        opened = codec.open(blob)
        opened.for_text()
    texts = list(islice(read_documents(docs, opened.tokenizer), documents))
    if save:
        from eval.proof.saved import check_pack, save_proof

        check_pack(save, blob)
    proof = proving.prove(blob, texts, check_device(device, ray), keep, adapt)
    if save:
        save_proof(save, blob, opened, texts, proof)
    console.emit(proof.to_json(), as_json)
    if proof.first_difference:
        where = proof.first_difference
        raise console.CheckFailed(
            f"the proof does not hold: document {where.document} differs from byte {where.byte} on"
        )


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file; default: report.html in RUN.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write one HTML file with the pictures of a run: training, pack, proof."""
    from codec.files import atomic_write, check_output
    from eval.proof import report as reporting

    path = output or run / "report.html"
    if run.is_dir():
        check_output(path, [file for file in run.iterdir() if file.name != "report.html"])
    page = reporting.report(run).encode()
    with atomic_write(path) as file:
        file.write(page)
    console.emit({"report": str(path), "bytes": len(page)}, as_json)
