"""The loss over a large vocabulary: softcapped cross-entropy that never holds the logits of a whole batch.

Gradients are computed beside the loss, a chunk of tokens at a time, while the chunk's logits exist. A training step
needs both, so the backward pass only scales the gradients of the forward pass (as in Wijmans et al. 2024 and the Liger
kernels, Hsu et al. 2024). Softcap, softmax and their derivative are one kernel over a chunk, the compiler's or that of
`trainer.kernels.loss`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 1 << 28
"""Logits in memory at one time: 512 MiB in bfloat16."""

SAFE_CAP = 60.0
"""Largest cap for which exp(logit) needs no maximum subtracted: it stays far from float32's limit, e^88."""


def losses_and_slopes(logits: Tensor, targets: Tensor, cap: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the losses of tokens, and the derivatives of their mean over `count` tokens by each logit.

    Args:
        logits: [N, V], not yet capped.
        targets: int64 [N].
        cap: of the softcap.
        count: tokens of the mean.

    Returns:
        float32 [N] in nats, and [N, V] in the dtype of the logits.
    """
    squashed = torch.tanh(logits.float() / cap)
    capped = cap * squashed
    hit = torch.arange(logits.shape[1], device=targets.device) == targets[:, None]
    normaliser = capped.logsumexp(-1, keepdim=True) if cap > SAFE_CAP else capped.exp().sum(-1, keepdim=True).log()
    losses = normaliser[:, 0] - torch.where(hit, capped, 0.0).sum(-1)
    slopes = ((capped - normaliser).exp() - hit.float()) * (1 - squashed.square()) / count
    return losses, slopes.to(logits.dtype)


def soft_losses_and_slopes(logits: Tensor, wanted: Tensor, cap: float, count: int) -> tuple[Tensor, Tensor]:
    """Do what `losses_and_slopes` does for wanted probabilities, [N, V], of which each row sums to 1."""
    squashed = torch.tanh(logits.float() / cap)
    capped = cap * squashed
    normaliser = capped.logsumexp(-1, keepdim=True)
    losses = normaliser[:, 0] - (wanted * capped).sum(-1)
    slopes = ((capped - normaliser).exp() - wanted) * (1 - squashed.square()) / count
    return losses, slopes.to(logits.dtype)


class SoftcappedCrossEntropy(torch.autograd.Function):
    """The mean cross-entropy in nats of targets under cap * tanh(hidden @ weight^T / cap)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float,
        chunk: int,
        own: bool,
        teacher: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_cap: float,
        share: float,
    ) -> Tensor:
        """Return a float32 scalar.

        Shapes: hidden [N, D] in the dtype of the products, weight float32 [V, D], targets int64 [N]; teacher [N, E] and
        teacher_weight [V, E] as hidden and weight, whose probabilities are wanted with weight `share`.
        """
        work = losses_and_slopes
        if own and teacher is None:
            from trainer.kernels.loss import losses_and_slopes as work  # Triton is missing on machines without a GPU
        count = len(targets)
        matrix = weight.to(hidden.dtype)
        total = torch.zeros((), device=hidden.device)
        hidden_gradients, weight_gradient = [], torch.zeros_like(weight)
        for begin in range(0, count, chunk):
            rows, wanted = hidden[begin : begin + chunk], targets[begin : begin + chunk]
            logits = F.linear(rows, matrix)
            if teacher is None or teacher_weight is None:
                losses, slopes = work(logits, wanted, cap, count)
            else:
                known = F.linear(teacher[begin : begin + chunk], teacher_weight.to(teacher.dtype)).float()
                probabilities = (teacher_cap * torch.tanh(known / teacher_cap)).softmax(-1)
                text = F.one_hot(wanted, len(weight)).float()
                losses, slopes = soft_losses_and_slopes(logits, text.lerp(probabilities, share), cap, count)
            total = total + losses.sum()
            hidden_gradients.append(slopes @ matrix)
            weight_gradient = weight_gradient + (slopes.mT @ rows).float()
        ctx.save_for_backward(torch.cat(hidden_gradients), weight_gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that `forward` kept, times the gradient of the loss."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        (scale,) = gradients
        return hidden_gradient * scale.to(hidden_gradient.dtype), weight_gradient * scale, *[None] * 8


@dataclass(frozen=True)
class Taught:
    """Probabilities of a teacher, as the last step of its network leaves them to be computed.

    Attributes:
        hidden: [B, T, E].
        weight: the matrix of the output head, [V, E].
        cap: of the softcap.
        share: of these probabilities in what is wanted, the text's being the rest.
    """

    hidden: Tensor
    weight: Tensor
    cap: float
    share: float


def softcapped_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float,
    chunk_logits: int = CHUNK_LOGITS,
    own: bool = False,
    taught: Taught | None = None,
) -> Tensor:
    """Return the mean cross-entropy in nats of targets under the softcapped logits of hidden [B, T, D].

    Args:
        hidden: [B, T, D].
        weight: the matrix of the output head, float32 [V, D]; used in the dtype of `hidden`.
        targets: int64 [B, T].
        cap: of the softcap.
        chunk_logits: how many logits may exist at one time.
        own: whether `trainer.kernels.loss` computes losses and slopes, if there is no teacher.
        taught: what a teacher says; None: there is none.
    """
    chunk = max(1, chunk_logits // len(weight))
    teacher = (
        (taught.hidden.flatten(0, 1), taught.weight, taught.cap, taught.share) if taught else (None, None, 1.0, 0.0)
    )
    return SoftcappedCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(0, 1), cap, chunk, own, *teacher)
