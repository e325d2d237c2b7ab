"""Begin a run with the weights of another: one long run in parts, on machines that are lent for a short time.

Only the weights go from one run to the next. The optimizer begins anew, so a recipe that continues wants some steps of
`warmup_steps`, and its learning rates rise again before they fall.
"""

from pathlib import Path

import torch

import codec
from codec.errors import MismatchError
from codec.model.byte_pairs import AnyTokenizer
from codec.model.checkpoint import load_checkpoint
from trainer.recipe import Recipe


def first_weights(recipe: Recipe, tokenizer: AnyTokenizer) -> dict[str, torch.Tensor] | None:
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
    path = Path(recipe.train.weights)
    if path.suffix == ".pack":
        pack = codec.open(path)
        config, found, state = pack.config, pack.tokenizer, pack.state_dict()
    else:
        checkpoint = load_checkpoint(path)
        config, found, state = checkpoint.config, checkpoint.tokenizer, checkpoint.state_dict
    if config != recipe.model:
        raise MismatchError(f"train.weights {path}: of a model of {config}, expected one of {recipe.model}")
    if found and found.sha256 != tokenizer.sha256:
        raise MismatchError(
            f"train.weights {path}: trained with a tokenizer of {found.vocab_size} tokens, SHA-256 {found.sha256}; "
            f"the text has one of {tokenizer.vocab_size} tokens, {tokenizer.sha256}"
        )
    return state
