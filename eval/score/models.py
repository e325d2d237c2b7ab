"""Load a model from a run folder, a `.safetensors` file, a pack, or a file that the challenge's scripts write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import codec
from codec.errors import FormatError, MismatchError
from codec.files import read_bytes
from codec.model.banks import from_challenge
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.checkpoint import load_checkpoint
from codec.model.config import AnyConfig
from codec.model.parameters import parameters
from codec.pack.container import MAGIC as PACK_MAGIC
from eval.score.challenge import load_peer
from trainer.model.build import FloatModel, float_network


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. `state_dict` is float32 and finite, and holds exactly the tensors of `config`."""

    config: AnyConfig
    tokenizer: AnyTokenizer
    state_dict: dict[str, torch.Tensor]

    def float_model(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FloatModel:
        """Build the float model, in evaluation mode; `dtype` as for `GPT`."""
        model = float_network(self.config, dtype)
        model.load_state_dict(self.state_dict)
        return model.to(device).eval()


def load_model(
    path: str | Path, tokenizer: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Read a model from a file whose kind is recognised by its content.

    Args:
        path: a run folder, `.safetensors` with a config in its metadata, a pack, or the `.pt` or `.ptz` of one of the
            challenge's scripts.
        tokenizer: a SentencePiece `.model`, instead of the tokenizer in the pack or beside the checkpoint.
        settings: entries of the config that a file of the challenge does not show (`eval.score.challenge.load_peer`).

    Raises:
        FormatError: the file is unreadable, damaged or not a model, or no tokenizer is found.
        MismatchError: weights, config and tokenizer do not belong together.
    """
    path = Path(path)
    found: AnyTokenizer | None = open_tokenizer(read_bytes(tokenizer, "tokenizer")) if tokenizer else None
    head = b"" if path.is_dir() else _head(path)
    config: AnyConfig | None
    if head.startswith(PACK_MAGIC):
        pack = codec.open(read_bytes(path, "pack"))
        state, config, found = pack.state_dict(), pack.config, found or pack.tokenizer
    elif path.is_dir() or _is_safetensors(head):
        checkpoint = load_checkpoint(path)
        state, config = from_challenge(checkpoint.state_dict), checkpoint.config
        found = found or checkpoint.tokenizer
    else:
        try:
            state, config = load_peer(read_bytes(path, "artifact"), settings)
        except FormatError as error:
            raise FormatError(f"model {path}: no run folder, pack or safetensors file, and as an {error}") from error
    if config is None:
        raise FormatError(
            f"model {path}: holds weights without a config; pass a run folder, a pack of a "
            "run folder, or, to `underpar import`, the whole folder of transformers"
        )
    if found is None:
        raise FormatError(f"model {path}: has no tokenizer with it; pass a SentencePiece .model with --tokenizer")
    if found.vocab_size > config.vocab_size:
        raise MismatchError(
            f"model {path}: a vocabulary of {config.vocab_size}, but the tokenizer has {found.vocab_size} pieces; "
            "pass the tokenizer that the model was trained with"
        )
    check_state(state, config, f"model {path}")
    return LoadedModel(config, found, {name: tensor.float() for name, tensor in state.items()})


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise FormatError(f"model {path}: {error.strerror}; pass an existing, readable file or run folder") from error


def _is_safetensors(head: bytes) -> bool:
    """Check that a file begins like safetensors: the header's length under 4 GiB in 64 bits, then a JSON object."""
    return head[4:9] == b"\0\0\0\0{"


def check_state(state: dict[str, torch.Tensor], config: AnyConfig, where: str) -> None:
    """Check that `state` holds exactly the tensors of `config`, and finite values only.

    Args:
        state: tensors by name.
        config: the shape of the model.
        where: the file, for error messages.

    Raises:
        MismatchError: a tensor is missing, not expected, or of another shape.
        FormatError: a tensor holds a value that is not finite.
    """
    expected = {name: parameter.shape for name, parameter in parameters(config).items()}
    for name in sorted(set(expected) | set(state)):
        shape = tuple(state[name].shape) if name in state else "none"
        if shape != expected.get(name, "none"):
            raise MismatchError(
                f"{where}: tensor {name}: found {shape}, its config expects {expected.get(name, 'none')}; "
                "pass weights and config of one model"
            )
        if not torch.isfinite(state[name]).all():
            raise FormatError(f"{where}: tensor {name} holds values that are not finite; repair the checkpoint")
