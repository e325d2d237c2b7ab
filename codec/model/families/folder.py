"""A folder of transformers on disk: config.json, safetensors (one file, or several and their index), tokenizer.json.

Nothing of a folder is run. Files are hostile: JSON is bounded before it is parsed, an index may name files of its own
folder alone, and safetensors checks its own bounds.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from codec.errors import FormatError
from codec.files import atomic_write
from codec.model.byte_pairs import AnyTokenizer, BytePairs
from codec.model.families.links import to_ours, to_theirs
from codec.model.families.registry import by_model_type
from codec.model.families.tokenizer_json import from_tokenizer_json, to_tokenizer_json
from codec.model.transformer import TransformerConfig, transformer_parameters
from codec.model.weight_files import open_weights, read_json
from codec.run_folder import WEIGHTS

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def load_folder(folder: str | Path) -> tuple[dict[str, Tensor], TransformerConfig, BytePairs]:
    """Read a folder of transformers.

    Raises:
        FormatError: a missing or damaged file, or what underpar does not know, by key and value.
    """
    folder = Path(folder)
    values = read_json(folder / CONFIG, "config")
    where = f"config {folder / CONFIG}"
    family = by_model_type(values.get("model_type"), where)
    tensors = open_weights(folder).tensors
    if values.get("tie_word_embeddings") is None:  # defaults differ between classes and versions
        values["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config = family.read_config(values, where)
    state = to_ours(
        family.links(config),
        lambda name: _take(tensors, name, folder),
        transformer_parameters(config),
        f"weights {folder}",
    )
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


def _take(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    """Return a tensor by its name, with or without the prefix `transformer.`.

    Raises:
        FormatError: the tensor is missing, or not floating point.
    """
    for found in (name, "transformer." + name):
        if found in tensors:
            if not (tensor := tensors[found]).is_floating_point():
                raise FormatError(f"weights {folder}: tensor {found} is not floating point")
            return tensor
    raise FormatError(f"weights {folder}: tensor {name} is missing; the config says that the model has it")
