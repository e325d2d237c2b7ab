"""Weights as other projects keep them: safetensors, their shards with an index, or PyTorch's own files.

Tensors are read when they are asked for, so that a checkpoint larger than memory can be packed.
"""

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from codec.errors import FormatError
from codec.files import open_binary
from codec.run_folder import WEIGHTS

INDEX = WEIGHTS + ".index.json"
PICKLED = "pytorch_model.bin"

MAX_JSON = 1 << 26
"""Bytes of a JSON file: the largest tokenizer.json in use has 34 million."""

MAX_SHARED = 1 << 26
"""Bytes of a tensor whose elements share memory in the file."""

_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.safetensors")
_POINTER = b"version https://git-lfs"
_PICKLES = (".bin", ".pt", ".pth")
_BESIDE = (".json", ".txt", ".model", ".md", ".jinja", ".tiktoken")  # suffixes of what travels with the weights
_MOST_BESIDE = 1 << 26  # bytes of all that


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint by name, its metadata, and its folder where the checkpoint is one."""

    tensors: Mapping[str, torch.Tensor]
    metadata: dict[str, str]
    folder: Path | None

    def beside(self) -> dict[str, bytes]:
        """Read the small files of the folder by name: config, tokenizer, card, licence and index of the shards.

        Raises:
            FormatError: they have more than 64 MiB.
        """
        return _beside(self.folder) if self.folder else {}


class Shards(Mapping[str, torch.Tensor]):
    """The tensors of safetensors files, each read when it is asked for."""

    def __init__(self, homes: Mapping[str, Path]):
        self._homes = dict(sorted(homes.items()))

    def __getitem__(self, name: str) -> torch.Tensor:
        with _safe(self._homes[name]) as file:
            found: torch.Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def open_weights(path: str | Path) -> WeightFiles:
    """Open the weights of a Hugging Face folder or of one file.

    Args:
        path: a folder with `model.safetensors`, its shards and their index, or `pytorch_model.bin`; or such a file.
            An index stands for its folder.

    Raises:
        FormatError: no such file, one of another kind, shards that are missing or do not agree with their index, or a
            pickle that holds more than tensors.
    """
    path = Path(path)
    if path.name == INDEX and path.is_file():
        path = path.parent
    if not path.is_dir():
        return WeightFiles(*_read_file(path), None)
    single, index = path / WEIGHTS, path / INDEX
    if single.is_file() and index.is_file():
        raise FormatError(f"weights {path}: both {WEIGHTS} and {INDEX}; remove the one that is out of date")
    if index.is_file():
        homes, metadata = _read_index(index)
        return WeightFiles(Shards(homes), metadata, path)
    if single.is_file() or (path / PICKLED).is_file():
        return WeightFiles(*_read_file(single if single.is_file() else path / PICKLED), path)
    there = sorted(file.name for file in path.glob("*.safetensors"))
    raise FormatError(
        f"weights {path}: none of {WEIGHTS}, {INDEX} and {PICKLED} is there; "
        + (f"pass one of the files {there[:5]}, or add their index" if there else "pass the folder of a model")
    )


def _read_file(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise FormatError(
            f"checkpoint {path}: no such file; pass a run folder, a Hugging Face folder or a weights file"
        )
    if (shard := _SHARD.fullmatch(path.name)) and int(shard[1]) > 1:
        raise FormatError(f"checkpoint {path}: one shard of {int(shard[1])}; pass the folder that has all and {INDEX}")
    if path.suffix == ".safetensors":
        with _safe(path) as file:
            return Shards(dict.fromkeys(file.keys(), path)), file.metadata() or {}
    if path.suffix in _PICKLES:
        return _unpickle(path), {}
    reads = "`underpar import` reads it" if path.suffix == ".gguf" else "convert it to safetensors"
    raise FormatError(f"checkpoint {path}: found {path.suffix or 'no suffix'}, expected .safetensors or .bin; {reads}")


def _safe(path: Path) -> Any:
    try:
        return safe_open(str(path), "pt")
    except (SafetensorError, OSError) as error:
        with open_binary(path, "checkpoint") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise FormatError(
                    f"checkpoint {path}: a pointer of Git LFS; fetch the weights: git lfs pull"
                ) from error
        raise FormatError(f"checkpoint {path}: not a safetensors file ({error})") from error


def _read_index(path: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the file of each tensor; the index and the shards must say the same."""
    try:
        homes = read_json(path, "index")["weight_map"]
        names = sorted(set(homes.values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"index {path}: expected JSON with a weight_map ({error!r})") from error
    if bad := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise FormatError(f"index {path}: shard {str(bad[0])[:80]!r}, expected a file of the index's folder")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FormatError(f"index {path}: shard {missing[0]} is missing; download the model again")
    found: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for name in names:
        with _safe(path.parent / name) as file:
            metadata |= file.metadata() or {}
            for tensor in file.keys():  # noqa: SIM118  # not a dict
                if tensor in found:
                    raise FormatError(f"index {path}: tensor {tensor} is in {found[tensor]} and in {name}")
                found[tensor] = name
    for tensor in sorted(set(found) | set(homes)):
        if found.get(tensor) != homes.get(tensor):
            raise FormatError(
                f"index {path}: tensor {tensor} is in {found.get(tensor, 'no shard')}, the index says "
                f"{homes.get(tensor, 'nothing')}; the index is of other shards"
            )
    return {tensor: path.parent / name for tensor, name in found.items()}, metadata


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise FormatError(
            f"checkpoint {path}: not a PyTorch file of tensors alone ({why_no_tensors(error)}); save the state dict as "
            "safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        inside = sorted(map(str, found))[:5] if isinstance(found, dict) else type(found).__name__
        raise FormatError(
            f"checkpoint {path}: found {inside}, expected tensors by name; save the state dict alone as safetensors"
        )
    for name, tensor in found.items():
        check_storage(tensor, f"checkpoint {path}: tensor {name}")
    return found


def check_storage(tensor: torch.Tensor, where: str) -> None:
    """Check that a tensor has about as many elements as its file: strides of 0 make any number of one.

    Raises:
        FormatError: it has more, and over MAX_SHARED bytes.
    """
    size = tensor.numel() * tensor.element_size()
    if size > max(MAX_SHARED, tensor.untyped_storage().nbytes()):
        held = tensor.untyped_storage().nbytes()
        raise FormatError(f"{where}: {size} bytes of {held} in the file; save it with tensor.contiguous()")


def why_no_tensors(error: Exception) -> str:
    """Say why `torch.load` refused a file; its own words for pickles advise to load them all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds objects that could run code"
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _beside(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    left = _MOST_BESIDE
    for path in sorted(folder.iterdir()):
        wanted = path.suffix in _BESIDE or path.name in ("LICENSE", "NOTICE")
        if not wanted or not path.is_file() or path.name.startswith("."):
            continue
        left -= path.stat().st_size
        if left < 0:
            raise FormatError(f"weights {folder}: more than {_MOST_BESIDE} bytes of files beside the weights")
        found[path.name] = path.read_bytes()
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return a JSON object of bounded size. Raises FormatError for anything else."""
    with open_binary(path, what) as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise FormatError(f"{what} {path}: over {MAX_JSON} bytes; no model has so much")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} {path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise FormatError(f"{what} {path}: found a JSON {type(values).__name__}, expected an object")
    return values
