"""The score on the validation shards after training, which no run reads before."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.errors import FormatError
from trainer.data.loader import to_device
from trainer.data.shards import Tokens, read_shard
from trainer.data.source import Source
from trainer.distributed import World
from trainer.recipe import Recipe

VAL_TOKENS = 1 << 14
"""Tokens of a validation batch: their logits over 8,192 tokens of vocabulary take 512 MiB."""


@dataclass(frozen=True)
class Validation:
    """The validation score: `loss` in nats per token, `bpb` in bits per byte.

    Bytes are those of the challenge's table, but no more than the text has (`Source.shares`).
    """

    loss: float
    bpb: float


@torch.no_grad()
def validate(loss: Callable[..., Tensor], source: Source, recipe: Recipe, world: World) -> Validation:
    """Score the first `val_tokens` targets of the validation stream, in rows without overlap.

    Args:
        loss: as `GPT.loss`.
        source: of the validation shards and the tokenizer.
        recipe: of the run.
        world: the processes that take part.

    Raises:
        FormatError: the shards do not hold one row, or their tokens stand for no text.
    """
    window = recipe.model.window
    parts: list[Tokens] = []
    while sum(map(len, parts)) <= recipe.train.val_tokens and len(parts) < len(source.val):
        parts.append(read_shard(source.val[len(parts)]))
    stream = np.concatenate(parts)[: recipe.train.val_tokens + 1].astype(np.int64)
    count = (len(stream) - 1) // window
    if count < 1:
        raise FormatError(
            f"validation: {len(stream)} tokens, expected at least {window + 1}; raise train.val_tokens or add text"
        )
    inputs = stream[: count * window].reshape(count, window)
    targets = stream[1 : count * window + 1].reshape(count, window)
    text_bytes = source.shares[1] * source.tokenizer.challenge_bytes(inputs, targets)
    if not text_bytes:
        raise FormatError(f"validation: {targets.size:,} tokens stand for 0 bytes of text; check shards and tokenizer")
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    batch = max(1, VAL_TOKENS // window)
    for first in range(world.rank * batch, count, world.size * batch):
        rows = to_device(inputs[first : first + batch], world.device)
        wanted = to_device(targets[first : first + batch], world.device)
        nats += loss(rows, wanted, reduction="none").double().sum()
    total = world.total(nats).item()
    return Validation(total / targets.size, total / math.log(2) / text_bytes)
