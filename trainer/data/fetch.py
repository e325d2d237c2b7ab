"""The challenge's published shards and tokenizer, from its data set on the hub.

The data set's `datasets/manifest.json` names the shards and the tokenizer of each variant. The downloaded files have
the layout of a prepared folder (`trainer.data.prepare`). The hub library continues interrupted downloads, and reads
`HF_ENDPOINT` and `HF_TOKEN`.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.console import notes
from codec.errors import CodecError, FormatError, MismatchError
from codec.files import atomic_write, read_bytes
from codec.model.tokenizer import Tokenizer
from trainer.data.prepare import MANIFEST, PREFIX, write_manifest
from trainer.data.shards import TOKENIZER, describe_shard, shard_length

REPO = "willdepueoai/parameter-golf"
ROOT = "datasets"
PARTIAL = ".partial"
"""Folder of unchecked downloads, removed at the end."""

TRIES = 2
"""Tries of a download: up to 1.4 the hub library gives up a download that breaks off in the middle of an answer."""


class FetchError(CodecError):
    """A download that failed."""


@dataclass(frozen=True)
class Variant:
    """The shards of one tokenizer by the data set's manifest; `tokenizer` is the path of its model below `ROOT`."""

    folder: str
    train_shards: int
    val_shards: int
    tokenizer: str


def fetch(folder: str | Path, variant: str = "sp1024", train_shards: int = 1, repo: str = REPO) -> dict[str, Any]:
    """Download all validation shards, the first `train_shards` training shards and the tokenizer into `folder`.

    Complete files are kept, so a second call continues the first.

    Args:
        folder: for the files, new or of an earlier call.
        variant: such as sp1024, for `fineweb10B_sp1024`.
        train_shards: number of training shards.
        repo: the data set.

    Returns:
        The manifest, as of `trainer.data.prepare.prepare`, without `text_bytes` and `tokens_per_shard`.

    Raises:
        FetchError: no connection, or the data set has no such file.
        FormatError: a download is no shard, manifest or tokenizer; or there are fewer shards than wanted.
        MismatchError: `folder` holds other shards, or the shards have tokens outside the tokenizer's vocabulary.
    """
    folder = Path(folder)
    found = _variant(_download(repo, f"{ROOT}/manifest.json", folder), variant, f"{repo}/{ROOT}/manifest.json")
    if not 0 <= train_shards <= found.train_shards:
        raise FormatError(f"{train_shards} training shards of {variant} wanted, {repo} has {found.train_shards}")
    sources = [f"{repo}/{ROOT}/{ROOT}/{found.folder}"]
    tokenizer = Tokenizer(read_bytes(_download(repo, f"{ROOT}/{found.tokenizer}", folder), "tokenizer"))
    _check_same(folder, sources, tokenizer)
    with atomic_write(folder / TOKENIZER) as file:
        file.write(tokenizer.model)
    splits = {}
    for split, count in (("val", found.val_shards), ("train", train_shards)):
        infos = []
        for i in range(count):
            path = folder / f"{PREFIX}_{split}_{i:06d}.bin"
            if not path.exists():
                arrived = _download(repo, f"{ROOT}/{ROOT}/{found.folder}/{path.name}", folder)
                shard_length(arrived)
                arrived.replace(path)
            infos.append(describe_shard(path, tokenizer))
        splits[split] = {
            "documents": sum(info.documents for info in infos),
            "tokens": sum(info.tokens for info in infos),
            "canonical_bytes": sum(info.canonical_bytes or 0 for info in infos),
            "files": [info.path.name for info in infos],
        }
    manifest = {
        "splits": splits,
        "tokenizer": {"file": TOKENIZER, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "sources": sources,
    }
    write_manifest(folder, manifest)
    shutil.rmtree(folder / PARTIAL)
    return manifest


def _check_same(folder: Path, sources: list[str], tokenizer: Tokenizer) -> None:
    """Raise MismatchError if `folder` was begun with other text or another tokenizer."""
    model, manifest = folder / TOKENIZER, folder / MANIFEST
    same = not model.exists() or read_bytes(model, "tokenizer") == tokenizer.model
    if same and manifest.exists():
        try:
            same = json.loads(read_bytes(manifest, "manifest"))["sources"] == sources
        except (ValueError, KeyError, TypeError):
            same = False
    if not same:
        raise MismatchError(f"{folder}: holds other shards than those of {sources[0]}; choose another folder")


def _download(repo: str, name: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not notes.is_terminal:
        disable_progress_bars()
    for attempt in range(TRIES):
        try:
            return Path(hf_hub_download(repo, name, repo_type="dataset", local_dir=folder / PARTIAL))
        except Exception as error:  # the library's errors have no common class, and all mean that the file is not there
            if attempt < TRIES - 1 and getattr(error, "response", None) is None:  # no answer, or a part of one
                continue
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FetchError(
                f"{name} of data set {repo} did not arrive ({reason}); check the name, the connection and HF_ENDPOINT, "
                "then run the same command again to continue"
            ) from error
    raise AssertionError("the last try returns or raises")


def _variant(manifest: Path, variant: str, where: str) -> Variant:
    wanted = f"fineweb10B_{variant}"
    data = read_bytes(manifest, "manifest")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from error
    try:
        datasets = {entry["name"]: entry for entry in content["datasets"]}
        models = {entry["name"]: entry.get("model_path") for entry in content["tokenizers"]}
        entry = datasets.get(wanted)
        found = entry and Variant(
            folder=wanted,
            train_shards=int(entry["stats"]["files_train"]),
            val_shards=int(entry["stats"]["files_val"]),
            tokenizer=models[entry["tokenizer_name"]] or "",
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{where}: not a manifest of shards ({type(error).__name__}: {error})") from error
    if found is None:
        known = ", ".join(name.removeprefix("fineweb10B_") for name in datasets)
        raise FormatError(f"{where}: no variant {variant}; it has {known[:500]}")
    if not found.tokenizer:
        raise FormatError(f"{where}: the tokenizer of {variant} is not a SentencePiece model; choose an sp variant")
    return found
