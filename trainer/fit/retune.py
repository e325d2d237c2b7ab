"""Re-tune what is continuous in a pack: gains, scales and gates, and the steps of rows and columns.

The integers stay as they are. Tensors of role "vector" and a factor for each row and column of a matrix are trained
against the float model on training text, to minimise KL(float || quantized). The result is rounded as in a pack, and
never worse than the start. Factors take bytes: a pack of 36 million weights grows by 0.3 to 0.6 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import codec
from codec.console import Advance, ignore_progress, progress
from codec.errors import FormatError, MismatchError
from codec.model.checkpoint import Checkpoint
from codec.model.parameters import parameters
from codec.pack.change import with_tunings, with_vectors
from codec.pack.vectors import HALF_LIMIT
from codec.quantization.quantized import MOST_TUNING, TUNING, Quantized, Tuning
from trainer.fit.calibrate import float_model, text_batches
from trainer.fit.correct import divergence
from trainer.model.build import FloatModel

LEARNING_RATE = 5e-4
"""Adam's rate for vectors at the first step, falling linearly to 0. At 1e-3 the gain at 4 bits is half as large."""

TUNING_RATE = 3e-3
"""Adam's rate for the factors of rows and columns, likewise."""

WEIGHTS_A_STEP = 160
"""Weights for each row or column from which the steps of a matrix are tuned. A tuning takes about 4.5 bits: 1.2 % of
150 weights at 2.6 bits: about as much as 100 steps saved on such matrices. Record-class matrices have 170 to 480."""

STEP_TOKENS = {"cpu": 1024, "cuda": 1 << 14}
"""Tokens of a step, by device."""

HELD_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 15}
"""Tokens of the held-out text that chooses the best of the tensors, by device."""

CHECKS = 5
"""Evaluations of the held-out rows in all."""


@dataclass(frozen=True)
class Retuned:
    """The vectors by name, float32 on the CPU, rounded as in a pack; tunings of matrices; KL of held-out rows in nats
    a token.
    """

    vectors: dict[str, Tensor]
    tunings: dict[str, Tuning]
    before: float
    after: float


class TunedSteps:
    """Matrices whose steps are trained: integers times a row and a column step, each times 1 + a trained number."""

    def __init__(self, matrices: Mapping[str, Quantized], device: torch.device):
        """Take the matrices that have steps by row and column, and enough weights for each.

        Args:
            matrices: of a pack, by name, without tunings.
            device: of the trained numbers.
        """
        self.fixed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, matrix in matrices.items():
            if matrix.grid and matrix.symbols.size >= WEIGHTS_A_STEP * sum(matrix.symbols.shape):
                parts = (matrix.symbols.astype(np.float32), matrix.grid.row_steps(), matrix.grid.column_steps())
                integers, rows, columns = (torch.from_numpy(part).to(device) for part in parts)
                self.fixed[name] = integers, rows, columns
        self.trained = {
            name: tuple(torch.zeros_like(steps).requires_grad_() for steps in (rows, columns))
            for name, (_, rows, columns) in self.fixed.items()
        }

    @property
    def parameters(self) -> list[Tensor]:
        """Return all trained numbers."""
        return [number for pair in self.trained.values() for number in pair]

    def weights(self) -> dict[str, Tensor]:
        """Return the matrices, [R, C] each, differentiable by the trained numbers."""
        found = {}
        for name, (integers, rows, columns) in self.fixed.items():
            by_row, by_column = self.trained[name]
            found[name] = integers * (rows * (1 + by_row))[:, None] * (columns * (1 + by_column))
        return found

    @torch.no_grad()
    def round(self) -> None:
        """Round the trained numbers to those that a pack can hold."""
        for number in self.parameters:
            number.copy_((number * TUNING).round().clamp(-MOST_TUNING, MOST_TUNING) / TUNING)

    def tunings(self) -> dict[str, Tuning]:
        """Return the rounded numbers as a pack holds them, of matrices that have any but 0."""
        found = {}
        for name, pair in self.trained.items():
            rows, columns = ((number.detach() * TUNING).round().int().cpu().numpy() for number in pair)
            if rows.any() or columns.any():
                found[name] = Tuning(rows, columns)
        return found


def retune(
    reference: FloatModel,
    quantized: FloatModel,
    matrices: Mapping[str, Quantized],
    batches: Sequence[Tensor],
    held: Sequence[Tensor],
    steps: int,
    advance: Advance = ignore_progress,
) -> Retuned:
    """Tune the vectors and the steps of `quantized`, which then holds the tensors returned.

    Args:
        reference: the float model.
        quantized: the same model with a pack's weights, on the same device.
        matrices: of the pack, whose integers and steps make up the matrices of `quantized`.
        batches: training text, int64 [B, T] each, used in turn; at least one.
        held: other text, on which the best tensors are chosen.
        steps: of Adam.
        advance: called with 1 for every step.
    """
    device = reference.tok_emb.weight.device
    roles = parameters(reference.config)
    for name, parameter in quantized.named_parameters():
        parameter.requires_grad_(roles[name].role == "vector")
    vectors = {name: parameter for name, parameter in quantized.named_parameters() if parameter.requires_grad}
    stepped = TunedSteps(matrices, device)
    trained = [*vectors.values(), *stepped.parameters]
    with torch.no_grad():
        truth = [reference.hidden(batch.to(device)) for batch in held]

    @torch.no_grad()
    def rounded_cost() -> tuple[float, list[Tensor]]:
        """Return the KL with all tensors rounded, and these tensors; those in training are put back."""
        current = [tensor.detach().clone() for tensor in trained]
        for vector in vectors.values():
            vector.copy_(kept(vector))
        stepped.round()
        weights = stepped.weights()
        nats = sum(
            divergence(reference.logits(hidden), functional_call(quantized, weights, (batch.to(device),))).item()
            for batch, hidden in zip(held, truth, strict=True)
        )
        rounded = [tensor.detach().clone() for tensor in trained]
        load(trained, current)
        return nats / sum(batch.numel() for batch in held), rounded

    before, best = rounded_cost()
    after = before
    groups = [(list(vectors.values()), LEARNING_RATE), (stepped.parameters, TUNING_RATE)]
    adam = torch.optim.Adam([{"params": group, "rate": rate} for group, rate in groups if group], betas=(0.9, 0.99))
    for step in range(steps):
        batch = batches[step % len(batches)].to(device)
        with torch.no_grad():
            target = reference(batch)
        for group in adam.param_groups:
            group["lr"] = group["rate"] * (1 - step / steps)
        (divergence(target, functional_call(quantized, stepped.weights(), (batch,))) / batch.numel()).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        if (step + 1) * CHECKS // steps > step * CHECKS // steps:
            found, rounded = rounded_cost()
            if found < after:
                best, after = rounded, found
        advance(1)
    load(trained, best)
    with torch.no_grad():
        for name, weights in stepped.weights().items():
            quantized.get_parameter(name).copy_(weights)
    return Retuned(
        {name: vector.detach().cpu().clone() for name, vector in vectors.items()}, stepped.tunings(), before, after
    )


def retune_pack(
    blob: bytes,
    checkpoint: Checkpoint,
    docs: Path | None,
    steps: int,
    device: str = "cpu",
) -> tuple[bytes, Retuned]:
    """Re-tune the vectors and the steps of a pack; its integers stay as they are.

    This is the command `underpar retune`, which shows progress.

    Args:
        blob: a pack of the checkpoint, whose steps are not tuned.
        checkpoint: the float model, with its config and tokenizer.
        docs: training text, any text file; None: the sample that ships.
        steps: of Adam.
        device: "cpu" or "cuda".

    Returns:
        (the new pack, what was found); the pack given, if nothing is better on held-out text.

    Raises:
        MismatchError: a pack of weights only, of another model, or with tuned steps.
        FormatError: not a pack, a checkpoint without config or tokenizer, or text too short.
    """
    pack = codec.open(blob)
    if pack.config is None or pack.config != checkpoint.config:
        raise MismatchError("pack: its config is not the checkpoint's; pass the checkpoint that was packed")
    if any(matrix.grid and matrix.grid.tuning for matrix in pack.matrices.values()):
        raise MismatchError("pack: its steps are tuned; pass the pack that `underpar pack` made")
    reference = float_model(checkpoint, device)
    quantized = float_model(Checkpoint(pack.state_dict(), pack.config, None), device)
    window = pack.config.window
    step_rows, held_rows = (max(1, tokens[device] // window) for tokens in (STEP_TOKENS, HELD_TOKENS))
    rows = torch.cat(text_batches(checkpoint, docs, (steps * step_rows + held_rows) * window))
    held_rows = min(held_rows, len(rows) // 4)
    if not held_rows:
        raise FormatError(f"text to tune on: {rows.numel()} tokens, expected at least {4 * window}; pass more")
    batches, held = rows[:-held_rows].split(step_rows), rows[-held_rows:].split(step_rows)
    with progress("re-tuning", steps, "step") as advance:
        found = retune(reference, quantized, pack.matrices, batches, held, steps, advance)
    if found.after < found.before:
        blob = with_tunings(with_vectors(blob, found.vectors), found.tunings)
    return blob, found


def kept(vector: Tensor) -> Tensor:
    """Return a vector as a pack stores it, in float32: rounded to float16 unless an entry is too large for float16."""
    vector = vector.detach().float()
    return vector.half().float() if (vector.abs() < HALF_LIMIT).all() else vector.clone()


@torch.no_grad()
def load(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite tensors in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
