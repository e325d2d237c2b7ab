"""Define the command `agree`, which compares the frequencies of all ways to run a pack."""

from pathlib import Path
from typing import Annotated

import typer

from codec import console
from codec.cli.options import Adapt, check_device
from codec.text.policy import Adaptation


def agree(
    pack: Annotated[Path, typer.Argument(help="The pack to run.")],
    docs: Annotated[list[Path], typer.Option(help="Text: JSON Lines, plain text, parquet; repeatable.")],
    devices: Annotated[str, typer.Option(help="Devices to compare: cpu, cuda, or cpu,cuda.")] = "cpu",
    documents: Annotated[int | None, typer.Option(min=1, help="Take only the first N documents.")] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Tokens of slow passes: the reference, and cached steps on a processor.")
    ] = 100_000,
    adapt: Adapt = Adaptation.NONE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every integer frequency of a text: CPU and GPU, kernels and reference, batches, chunks and steps."""
    from itertools import chain, islice

    from codec.cli.options import open_pack
    from eval.proof import agree as agreeing
    from trainer.data.documents import read_documents

    names = list(dict.fromkeys(check_device(name.strip()) for name in devices.split(",")))
    opened = open_pack(pack)
    texts = list(islice(chain.from_iterable(read_documents(path, opened.tokenizer) for path in docs), documents))
    found = agreeing.agree(opened, texts, names, sample, adapt)
    heads = ["what", "device", "arithmetic", "tokens", "differences", "tokens/s"]
    rows = ((p.what, p.device, p.arithmetic, p.tokens, p.differences, p.tokens_per_second) for p in found.passes)
    lines = [(*row, round(speed)) for *row, speed in rows]
    console.emit(found.to_json(), as_json, lambda: console.table(heads, lines))
    if found.differences:
        wrong = next(p for p in found.passes if p.first_difference)
        assert wrong.first_difference
        document, token = wrong.first_difference
        raise console.CheckFailed(
            f"{found.differences:,} tokens differ, first in document {document} from token {token} on: "
            f"{wrong.what} on {wrong.device} ({wrong.arithmetic})"
        )
