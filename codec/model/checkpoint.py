"""A float model on disk: safetensors, with the config and the tokenizer beside the weights in one folder.

A run folder holds `model.safetensors` (whose metadata entry `config` is the config as JSON) and `tokenizer.model`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from codec.errors import FormatError
from codec.files import atomic_write, read_bytes
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.config import AnyConfig, metadata_config
from codec.run_folder import WEIGHTS

TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, its config and its tokenizer; either is None where the files lack it (other projects' weights)."""

    state_dict: dict[str, torch.Tensor]
    config: AnyConfig | None
    tokenizer: AnyTokenizer | None


def save_checkpoint(
    folder: str | Path, state: dict[str, torch.Tensor], config: AnyConfig, tokenizer: AnyTokenizer
) -> Path:
    """Write `model.safetensors` and `tokenizer.model` into `folder` and return the path of the former."""
    path = Path(folder) / WEIGHTS
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(Path(folder) / TOKENIZER) as file:
        file.write(tokenizer.model)
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"config": config.to_json()}))
    return path


def load_checkpoint(path: str | Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """Read a run folder or a `.safetensors` file.

    Args:
        path: the folder or file.
        tokenizer: path of the tokenizer; None: `tokenizer.model` beside the weights, where that file exists.

    Raises:
        FormatError: no such file, not safetensors, or a broken config.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FormatError(f"checkpoint {path}: no such file; pass a run folder or a .safetensors file")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise FormatError(f"checkpoint {path}: not a safetensors file ({error})") from error
    beside = Path(tokenizer) if tokenizer else path.parent / TOKENIZER
    return Checkpoint(
        state_dict=state,
        config=metadata_config(metadata),
        tokenizer=open_tokenizer(read_bytes(beside, "tokenizer")) if tokenizer or beside.is_file() else None,
    )
