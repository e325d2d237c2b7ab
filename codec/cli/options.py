"""Define the options that commands of all rooms share, and open what the options name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.errors import FormatError, MismatchError
from codec.text.policy import Adaptation

if TYPE_CHECKING:
    from codec.pack.reader import Pack

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="The pack whose model codes the text: a name of the store, or a file; or none."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace outputs that are there.")]
Remove = Annotated[bool, typer.Option("--rm", help="Remove the inputs when the outputs are whole.")]
Stdout = Annotated[bool, typer.Option("--stdout", "-c", help="Write to standard output.")]
Threads = Annotated[
    int | None, typer.Option("--threads", "-T", min=1, help="Threads of the processor; by default all.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print what becomes of each input.")]
Adapt = Annotated[Adaptation, typer.Option(help="What the model learns from a document while coding it.")]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda (all GPUs), cuda:N, or several with commas (cpu,cpu), a process each; the bytes are the same."
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Code on the processors or GPUs (--device cuda) of the Ray cluster at HOST:PORT; auto, or local for one "
        "that is started here.",
    ),
]


def open_pack(path: str | Path) -> "Pack":
    """Open the pack of a name in the store, or in a file. Raises FormatError that names the file."""
    import codec
    from codec.pack import store

    found = store.find(path, store.FOLDERS)
    with named_pack(found):
        return codec.open(found)


@contextmanager
def named_pack(path: Path) -> Iterator[None]:
    """Name the file of a pack in errors about it."""
    try:
        yield
    except (FormatError, MismatchError) as error:
        raise type(error)(str(error).replace("pack: ", f"pack {path}: ", 1)) from error


def check_device(device: str, ray: str | None = None) -> str:
    """Return the name of a device if this machine has it, or on the cluster at `ray`. Raises CodecError otherwise."""
    from codec.devices import find_devices

    name = device if ray is None else f"{device}@{ray}"
    find_devices(name)
    return name


def set_threads(count: int | None) -> None:
    """Set the number of threads for work on a processor; None for `codec.devices.compute_threads`."""
    import os
    import sys

    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(count)
