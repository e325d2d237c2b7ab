"""The effect of quantized weights on a model: KL(float || quantized) and cross-entropy on the same windows of a text.

Sums are kept by window, so that two variants of a model are compared in pairs. Most of the difference between windows
is common to both variants and cancels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.console import Advance, ignore_progress
from codec.errors import CodecError
from codec.model.tokenizer import Tokenizer
from eval.score.windows import flat_windows
from trainer.model.build import FloatModel, float_network

MAX_LOGITS = 1 << 22
"""Elements of logits in one computation: 32 MiB in float64, in a few copies."""

BATCH_TOKENS = 1 << 14
"""Tokens of one forward pass, at least one window."""

Sums = NDArray[np.float64]


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


def mean_of(sums: Sums, count: float) -> Mean:
    """Return the sum of independent `sums` [W] over `count`, with its standard error (nan for one sum)."""
    windows = len(sums)
    spread = float(np.std(sums, ddof=1)) if windows > 1 else math.nan
    return Mean(float(sums.sum()) / count, spread * math.sqrt(windows) / count)


@dataclass(frozen=True)
class Divergence:
    """The sums of one variant by window: float64 [W] each, in nats."""

    kl: Sums  # sum over a window's positions of KL(float || variant)
    nats: Sums  # cross-entropy of its targets


class Ruler:
    """A float model and the text on which variants of the model are measured.

    Args:
        model: the reference, in evaluation mode, on the device of the computation.
        tokenizer: counts the bytes of the text.
        stream: tokens [N]; full windows of them are used, side by side, under the challenge's flat accounting.
        tokens: about how many tokens to use, at least two windows.

    Raises:
        CodecError: fewer than two windows of text.
    """

    def __init__(self, model: FloatModel, tokenizer: Tokenizer, stream: NDArray[np.integer], tokens: int):
        window = model.config.window
        plan = flat_windows(len(stream), window)[: max(2, tokens // window)]
        if len(plan) < 2:
            raise CodecError(
                f"{len(stream)} tokens of text, expected at least {2 * window + 1}: two windows; pass more"
            )
        self._device = model.tok_emb.weight.device
        rows = np.stack([stream[w.start : w.end + 1] for w in plan]).astype(np.int64)
        self.rows = torch.from_numpy(rows).to(self._device)
        self._reference = model
        self._variant = float_network(model.config).to(self._device).eval()
        self._hidden = torch.cat([self._hidden_of(model, batch) for batch in self._batches()])
        self.windows = len(plan)
        self.tokens = len(plan) * window
        self.text_bytes = tokenizer.challenge_bytes(rows[:, :-1], rows[:, 1:])
        self.reference_nats = self.measure(model.state_dict()).nats

    def measure(self, state: Mapping[str, Tensor], advance: Advance = ignore_progress) -> Divergence:
        """Measure a variant's weights, a state dict of the model; `advance` is called with tokens."""
        self._variant.load_state_dict(dict(state))
        kl, nats = [], []
        at = 0
        for batch in self._batches():
            hidden = self._hidden_of(self._variant, batch)
            for row, changed in enumerate(hidden):
                both = self._window(self._hidden[at + row], changed, batch[row, 1:])
                kl.append(both[0])
                nats.append(both[1])
            at += len(batch)
            advance(batch[:, 1:].numel())
        return Divergence(torch.stack(kl).cpu().numpy(), torch.stack(nats).cpu().numpy())

    def kl(self, found: Divergence) -> Mean:
        """Return the KL divergence in nats a token."""
        return mean_of(found.kl, self.tokens)

    def bpb(self, found: Divergence) -> Mean:
        """Return the bits per byte of the text."""
        return mean_of(found.nats, math.log(2) * self.text_bytes)

    def tax(self, found: Divergence) -> Mean:
        """Return the bits per byte over the float model's, paired by window."""
        return mean_of(found.nats - self.reference_nats, math.log(2) * self.text_bytes)

    def _batches(self) -> tuple[Tensor, ...]:
        return self.rows.split(max(1, BATCH_TOKENS // (self.rows.shape[1] - 1)))

    @torch.inference_mode()
    def _hidden_of(self, model: FloatModel, batch: Tensor) -> Tensor:
        return model.hidden(batch[:, :-1])

    @torch.inference_mode()
    def _window(self, reference: Tensor, changed: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums (KL, nats) of one window, float64 scalars, of both hidden states [T, D] and targets [T]."""
        step = max(1, MAX_LOGITS // self._reference.config.vocab_size)
        kl = torch.zeros((), dtype=torch.float64, device=self._device)
        nats = torch.zeros_like(kl)
        for h, k, target in zip(reference.split(step), changed.split(step), targets.split(step), strict=True):
            # float64: the terms of a small divergence nearly cancel
            p = self._reference.logits(h).double().log_softmax(-1)
            q = self._variant.logits(k).double().log_softmax(-1)
            kl += (p.exp() * (p - q)).sum()
            nats -= q.gather(-1, target[:, None]).sum()
        return kl, nats
