"""Read a model of an open family from wherever it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from codec.errors import FormatError
from codec.model.byte_pairs import BytePairs
from codec.model.families.folder import CONFIG, load_folder
from codec.model.families.gguf import load_gguf
from codec.model.transformer import TransformerConfig, whole_window


@dataclass(frozen=True)
class Source:
    """A model in our names, its config and its tokenizer."""

    state_dict: dict[str, Tensor]
    config: TransformerConfig
    tokenizer: BytePairs


def is_source(path: Path) -> bool:
    """Tell whether a path is a folder of transformers or a GGUF file."""
    return (path / CONFIG).is_file() or path.suffix == ".gguf"


def load_source(path: Path, settings: Mapping[str, Any] | None = None) -> Source:
    """Read a folder of transformers or a GGUF file.

    Args:
        path: the folder or file.
        settings: entries of the config to change: `window` alone, tokens of context, at most the model's. Windows are
            whole (`codec.model.transformer.whole_window`): what is left over is dropped.

    Raises:
        FormatError: a setting that is not known, or what the readers refuse.
    """
    state, config, tokenizer = load_folder(path) if path.is_dir() else load_gguf(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(f"{path}: {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}")
    config = replace(config, begin=tokenizer.begin, end=tokenizer.end)
    if unknown := sorted(set(settings or {}) - {"window"}):
        raise FormatError(f"{path}: {unknown} cannot be changed, only the window of such a model")
    window = (settings or {}).get("window", config.window)
    if type(window) is not int or not 2 <= window <= config.window:
        raise FormatError(f"{path}: a window of {window!r} tokens, expected 2 to {config.window}, the model's")
    window = whole_window(window)
    if "pos_emb.weight" in state:
        state["pos_emb.weight"] = state["pos_emb.weight"][:window].contiguous()
    return Source(state, replace(config, window=window), tokenizer)
