"""A folder of transformers on disk: config.json, safetensors (one file, or several and their index), tokenizer.json.

Nothing of a folder is run. Files are hostile: JSON is bounded before it is parsed, an index may name files of its own
folder alone, and safetensors checks its own bounds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from codec.errors import FormatError
from codec.files import atomic_write, open_binary
from codec.model.byte_pairs import AnyTokenizer, BytePairs
from codec.model.families.links import to_ours, to_theirs
from codec.model.families.registry import by_model_type
from codec.model.families.tokenizer_json import from_tokenizer_json, to_tokenizer_json
from codec.model.transformer import TransformerConfig, transformer_parameters

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

MAX_JSON = 1 << 26
"""Bytes of a JSON file: the largest tokenizer.json in use has 34 million."""


def load_folder(folder: str | Path) -> tuple[dict[str, Tensor], TransformerConfig, BytePairs]:
    """Read a folder of transformers.

    Raises:
        FormatError: a missing or damaged file, or what underpar does not know, by key and value.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG, "config")
    where = f"config {folder / CONFIG}"
    family = by_model_type(values.get("model_type"), where)
    tensors = _Tensors(folder)
    if values.get("tie_word_embeddings") is None:  # defaults differ between classes and versions
        values["tie_word_embeddings"] = "lm_head.weight" not in tensors.homes
    config = family.read_config(values, where)
    state = to_ours(family.links(config), tensors.take, transformer_parameters(config), f"weights {folder}")
    tokenizer = from_tokenizer_json(read_json(folder / TOKENIZER, "tokenizer"), config.begin, config.end)
    return state, config, tokenizer


def save_folder(
    folder: str | Path, state: Mapping[str, Tensor], config: TransformerConfig, tokenizer: AnyTokenizer | None
) -> Path:
    """Write a folder that transformers loads; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    family = by_model_type(config.family, "config")
    tensors = to_theirs(family.links(config), state)
    files = {
        CONFIG: json.dumps(family.write_config(config), indent=1).encode(),
        WEIGHTS: save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, metadata={"format": "pt"}),
    }
    if isinstance(tokenizer, BytePairs):
        files[TOKENIZER] = json.dumps(to_tokenizer_json(tokenizer), ensure_ascii=False).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    return folder


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


class _Tensors:
    """The tensors of a folder, each read when it is asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.homes = self._names()

    def _names(self) -> dict[str, str]:
        """Return the file of each tensor."""
        if (self._folder / WEIGHTS).is_file():
            return dict.fromkeys(self._open(WEIGHTS), WEIGHTS)
        if not (self._folder / INDEX).is_file():
            raise FormatError(
                f"weights {self._folder}: neither {WEIGHTS} nor {INDEX}; pass a folder with weights as safetensors"
            )
        homes = read_json(self._folder / INDEX, "index").get("weight_map")
        if not isinstance(homes, dict):
            raise FormatError(f"index {self._folder / INDEX}: weight_map is {type(homes).__name__}, expected an object")
        for name, home in homes.items():
            if not isinstance(home, str) or Path(home).name != home or not home.endswith(".safetensors"):
                raise FormatError(
                    f"index {self._folder / INDEX}: {name} is in {str(home)[:80]!r}, expected a .safetensors file of "
                    "the folder"
                )
        return homes

    def _open(self, home: str) -> list[str]:
        with self._file(home) as file:
            return list(file.keys())

    def _file(self, home: str) -> Any:
        path = self._folder / home
        if not path.is_file():
            raise FormatError(f"weights {path}: no such file; the index names it")
        try:
            return safe_open(str(path), "pt")
        except SafetensorError as error:
            raise FormatError(f"weights {path}: not a safetensors file ({error})") from error

    def take(self, name: str) -> Tensor:
        """Return a tensor by its name, with or without the prefix `transformer.`.

        Raises:
            FormatError: it is missing, or not floating point.
        """
        for found in (name, "transformer." + name):
            if (home := self.homes.get(found)) is not None:
                try:
                    with self._file(home) as file:
                        tensor = file.get_tensor(found)
                except SafetensorError as error:
                    raise FormatError(f"weights {self._folder / home}: tensor {found} is missing ({error})") from error
                if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                    raise FormatError(f"weights {self._folder / home}: tensor {found} is not floating point")
                return tensor
        raise FormatError(f"weights {self._folder}: tensor {name} is missing; the config says that the model has it")
