"""Bring models of other runs into a run: the weights that it begins with, and its teacher.

One long run can be made in parts, on machines that are lent for a short time. Only the weights go from one part to the
next. The optimizer begins anew, so a recipe that continues wants some steps of `warmup_steps`, and its learning rates
rise again before they fall.
"""

from pathlib import Path

import torch

import codec
from codec.errors import MismatchError
from codec.model.byte_pairs import AnyTokenizer
from codec.model.checkpoint import load_checkpoint
from codec.model.config import AnyConfig, ModelConfig
from trainer.distributed import World
from trainer.model.gpt import GPT
from trainer.recipe import Recipe

Weights = dict[str, torch.Tensor]


def first_weights(recipe: Recipe, tokenizer: AnyTokenizer) -> Weights | None:
    """Read the weights that a recipe begins with (`train.weights`), by name; None if it names none.

    Args:
        recipe: the settings.
        tokenizer: of the run's text.

    Raises:
        FormatError: no such file, or none that holds weights.
        MismatchError: the weights are of another model, or were trained with another tokenizer.
    """
    if not recipe.train.weights:
        return None
    config, state = _read("train.weights", recipe.train.weights, tokenizer)
    if config != recipe.model:
        raise MismatchError(f"train.weights {recipe.train.weights}: of a model of {config}, expected {recipe.model}")
    return state


def teacher_of(recipe: Recipe, tokenizer: AnyTokenizer, world: World) -> GPT | None:
    """Make the model whose probabilities a run learns (`learning.teacher`), on its device; None if there is none.

    Raises:
        FormatError: no such file, or none that holds weights.
        MismatchError: the teacher is of another family, has a shorter window, or was trained with another tokenizer.
    """
    if not recipe.learning.teacher or not recipe.learning.teacher_share:
        return None
    config, state = _read("learning.teacher", recipe.learning.teacher, tokenizer)
    if not isinstance(config, ModelConfig) or config.window < recipe.model.window:
        found = f"a window of {config.window} tokens" if isinstance(config, ModelConfig) else f"a config of {config}"
        raise MismatchError(
            f"learning.teacher {recipe.learning.teacher}: {found}, expected a model of this project with a window of "
            f"{recipe.model.window} or more"
        )
    dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    teacher = GPT(config, dtype=dtype, document_masks=recipe.train.document_masks)
    teacher.load_state_dict(state)
    return teacher.to(world.device).requires_grad_(False)


def _read(entry: str, name: str, tokenizer: AnyTokenizer) -> tuple[AnyConfig | None, Weights]:
    """Read config and weights of a run folder, a .safetensors file or a pack; `entry` is the recipe's, for messages."""
    path = Path(name)
    if path.suffix == ".pack":
        pack = codec.open(path)
        config, found, state = pack.config, pack.tokenizer, pack.state_dict()
    else:
        checkpoint = load_checkpoint(path)
        config, found, state = checkpoint.config, checkpoint.tokenizer, checkpoint.state_dict
    if found and found.sha256 != tokenizer.sha256:
        raise MismatchError(
            f"{entry} {path}: trained with a tokenizer of {found.vocab_size} tokens, SHA-256 {found.sha256}; "
            f"the text has one of {tokenizer.vocab_size} tokens, {tokenizer.sha256}"
        )
    return config, state
