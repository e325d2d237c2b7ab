"""Options that several commands share, and the checks of what they are given."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.text.policy import Adaptation

if TYPE_CHECKING:
    from codec.pack.reader import Pack

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[Path, typer.Option("--model", "-m", help="The pack whose model codes the text.")]
Adapt = Annotated[Adaptation, typer.Option(help="What learns from a document while it is coded.")]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda (all GPUs), cuda:N, or several with commas (cpu,cpu), a process each; same bytes."),
]


def open_pack(path: Path) -> "Pack":
    """The pack in a file. Raises FormatError that names the file."""
    import codec
    from codec.files import read_bytes

    return codec.open(read_bytes(path, "pack"))


def check_device(device: str) -> str:
    """`device` if this machine has it. Raises CodecError otherwise."""
    from codec.devices import find_devices

    find_devices(device)
    return device
