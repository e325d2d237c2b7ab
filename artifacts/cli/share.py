"""Define the command group `hub`, which keeps and shares models."""

from pathlib import Path
from typing import Annotated

import typer

from codec.console import emit, table

hub = typer.Typer(no_args_is_help=True, add_completion=False, help="Keep and share models.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name.")]


@hub.callback()
def hub_group() -> None:
    """Keep and share models."""


@hub.command("list")
def list_packs(
    on_hub: Annotated[bool, typer.Option("--hub", help="List models on the Hugging Face hub, too.")] = False,
    owner: Annotated[str | None, typer.Option(help="List only this owner's models on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """List the packs that ship and the models in the store."""
    from artifacts.share.packs import shipped
    from artifacts.share.store import default_store

    found = {**shipped(), **default_store().packs()}
    packs = [{"name": name, "path": str(path), "bytes": path.stat().st_size} for name, path in found.items()]
    result: dict[str, object] = {"packs": packs}
    rows = [list(pack.values()) for pack in packs]
    if on_hub:
        from artifacts.share.hub import models

        listed = models(owner)
        result["hub"] = [{"name": model.name, "commit": model.commit} for model in listed]
        rows += [[model.name, f"hub, commit {model.commit[:12]}", ""] for model in listed]
    emit(result, as_json, lambda: table(["name", "path", "bytes"], rows))


@hub.command("push")
def push(
    run: Annotated[Path, typer.Argument(help="A run folder with a pack and its proof, or any run folder with --docs.")],
    name: Name,
    licence: Annotated[str, typer.Option(help="Licence of the model: an SPDX identifier such as mit.")],
    data: Annotated[str, typer.Option(help="The training text, its source and its licence.")],
    docs: Annotated[Path | None, typer.Option(help="Pack and prove a finished run first, on this text.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="With --docs: largest size of the pack in bytes.")] = None,
    to_hub: Annotated[bool, typer.Option("--hub", help="Publish on the hub instead of the store.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new model on the hub private.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a run, whole or not at all: pack, checkpoint, config, recipe, metrics, proof and a model card."""
    from artifacts.share.bundle import Card
    from artifacts.share.store import default_store

    card, store = Card(licence, data), default_store()
    store.folder(name)  # a name that is none fails before the run is packed and proved
    if docs:
        from artifacts.share.publish import complete
        from trainer.data.documents import read_documents

        complete(run, list(read_documents(docs)), budget)
    if to_hub:
        from artifacts.share import hub as on_hub

        result = {"name": name, "commit": on_hub.push(name, run, card, private)}
    else:
        result = {"name": name, "folder": str(store.put(name, run, card))}
    emit(result, as_json)


@hub.command("pull")
def pull(
    name: Name,
    revision: Annotated[str | None, typer.Option(help="A commit, branch or tag; default: main.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face hub into the store, and check every file, the pack and its proof."""
    from artifacts.share.hub import pull as fetch
    from artifacts.share.store import default_store
    from codec.run_folder import PACK

    folder = fetch(name, default_store(), revision)
    emit({"name": name, "pack": str(folder / PACK), "bytes": (folder / PACK).stat().st_size}, as_json)
