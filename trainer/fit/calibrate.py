"""Calibration: the second moments of every matrix's inputs and output gradients on training text.

Labels are sampled from the model, so the gradients' second moment is the Fisher information and not the empirical
Fisher. Text is streamed batch by batch and divided among the processes of a run; the sums stay on the model's device.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from codec.console import Advance, ignore_progress, progress
from codec.errors import FormatError
from codec.model.bigram import bigram_rows
from codec.model.checkpoint import Checkpoint
from codec.quantization.calibration import Moments
from trainer.data.documents import read_documents
from trainer.data.sample import train_documents
from trainer.distributed import ALONE, World
from trainer.fit.correct import Correction, corrected, measure, tokens_for
from trainer.model.build import FloatModel, float_network

FULL_OUTPUTS = 4096
"""Outputs of a linear layer beyond which only the diagonal of their moment is kept: the full moment has 64 MiB."""


UNSEEN = 1.0
"""Look-ups of a table's row that the text did not visit: other text will. A Llama of 260,000 weights with a head of its
own, 4,096 tokens of calibration that lack 303 of 1,024 tokens, at 3 bits a weight: KL 0.0383 nats with 0, 0.0120 with a
quarter, 0.0082 with a half, 0.0069 with 1; 0.0423 without a calibration."""


class _Layer:
    """Sums over the uses of a linear layer: x x^T of its inputs, g g^T of the gradients at its outputs."""

    def __init__(self, layer: nn.Linear):
        rows, columns = layer.weight.shape
        self.full = rows <= FULL_OUTPUTS
        self.inputs = layer.weight.new_zeros(columns, columns)
        self.outputs = layer.weight.new_zeros((rows, rows) if self.full else rows)
        self.uses = layer.weight.new_zeros((), dtype=torch.float64)
        self.hooks: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._see),
            layer.register_full_backward_hook(self._feel),
        ]

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2)
        self.inputs.addmm_(x.T, x)
        self.uses += len(x)

    def _feel(self, _: nn.Module, __: object, gradients: tuple[Tensor, ...]) -> None:
        g = gradients[0].detach().flatten(0, -2)
        if self.full:
            self.outputs.addmm_(g.T, g)
        else:
            self.outputs += g.square().sum(0)

    def moments(self, tokens: int, world: World) -> Moments:
        uses = world.total(self.uses).item()
        return Moments(_mean(world.total(self.inputs), uses), _mean(world.total(self.outputs), tokens))


class _Table:
    """Sums over the look-ups of a table: gradients g g^T at its rows, and the number of look-ups of each row."""

    def __init__(self, table: nn.Embedding):
        self.gradients = table.weight.new_zeros(table.embedding_dim, table.embedding_dim)
        self.visits = table.weight.new_zeros(table.num_embeddings)
        self.hooks: list[RemovableHandle] = [table.register_forward_hook(self._looked_up)]

    def _looked_up(self, _: nn.Module, __: object, output: Tensor) -> None:
        output.register_hook(self._feel)

    def _feel(self, gradient: Tensor) -> None:
        g = gradient.detach().flatten(0, -2)
        self.gradients.addmm_(g.T, g)

    def visit(self, rows: Tensor) -> None:
        self.visits += torch.bincount(rows.flatten(), minlength=len(self.visits))

    def moments(self, tokens: int, world: World) -> Moments:
        visits = world.total(self.visits).clamp(min=UNSEEN)
        return Moments(_mean(world.total(self.gradients), tokens), _mean(visits, tokens))


class _Head:
    """Sums over the matrix of the output head: its inputs, and the Fisher information of each logit."""

    def __init__(self, model: FloatModel):
        vocabulary, dim = model.head.shape
        self.inputs = model.head.new_zeros(dim, dim)
        self.chances = model.head.new_zeros(vocabulary)
        self.information = model.head.new_zeros(vocabulary)
        self.cap = model.config.logit_softcap

    def see(self, hidden: Tensor, logits: Tensor, chances: Tensor) -> None:
        self.inputs.addmm_(hidden.T, hidden)
        slope = 1 - (logits / self.cap).square()  # derivative of the softcap
        self.chances += chances.sum(0)
        self.information += (chances * (1 - chances) * slope.square()).sum(0)

    def moments(self, table: _Table | None, tokens: int, world: World) -> Moments:
        """Return the moments of both uses of a tied embedding.

        A row is looked up about as often as its token is likely.
        """
        information = world.total(self.information)
        if table is None:
            return Moments(_mean(world.total(self.inputs), tokens), _mean(information, tokens))
        lookups = world.total(self.chances).sum() / information.sum()
        inputs = world.total(self.inputs) + lookups * world.total(table.gradients)
        return Moments(_mean(inputs, tokens), _mean(information, tokens))


def _mean(total: Tensor, count: float) -> NDArray[np.float32]:
    return (total / max(1, count)).float().cpu().numpy()


def calibrate(
    model: FloatModel,
    batches: Iterable[Tensor],
    seed: int = 0,
    advance: Advance = ignore_progress,
    world: World = ALONE,
) -> dict[str, Moments]:
    """Return the moments of every linear layer, of the embedding and of other tables.

    A linear layer of up to FULL_OUTPUTS outputs gets the full moment of its output gradients, a larger layer the
    diagonal. The output head (the information of each logit) and tables (look-ups of a row, as a share of tokens) get
    the diagonal, too. The matrix of a factorised embedding has the moments of its use behind the table alone.

    Args:
        model: in float32; its gradients are used and cleared.
        batches: token ids, int64 [B, T] each; at least one. Every process gets all batches and takes its share.
        seed: of the sampled labels.
        advance: called with the tokens of each batch, the other processes' too.
        world: the processes that take part.

    Returns:
        Moments by weight name, the same in every process.
    """
    modules = {f"{name}.weight": module for name, module in model.named_modules() if module is not model.lm_head}
    layers = {name: _Layer(m) for name, m in modules.items() if isinstance(m, nn.Linear)}
    tables = {name: _Table(m) for name, m in modules.items() if isinstance(m, nn.Embedding)}
    head = _Head(model)
    device = model.tok_emb.weight.device
    generator = torch.Generator(device)
    tokens = 0
    for number, rows in enumerate(batches):
        if number % world.size == world.rank:
            generator.manual_seed(label_seed(seed, number))
            batch = rows.to(device)
            hidden = model.hidden(batch)
            logits = model.logits(hidden).flatten(0, 1)
            chances = logits.detach().softmax(-1)
            labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
            head.see(model.before_head(hidden).detach().flatten(0, 1), logits.detach(), chances)
            nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
            model.zero_grad(set_to_none=True)
            if model.lm_head is not None:
                tables["tok_emb.weight"].visit(batch)
            if (places := getattr(model, "pos_emb", None)) is not None:
                rows_used = torch.arange(places.num_embeddings, device=device)[: batch.shape[1]]
                tables["pos_emb.weight"].visit(rows_used.expand(batch.shape))
            if model.bigram is not None:
                tables["bigram.embed.weight"].visit(bigram_rows(batch, model.config.bigram_buckets))
            if model.values is not None:
                tables["values.embed.weight"].visit(batch)
        tokens += rows.numel()
        advance(rows.numel())
    hooks = [hook for layer in layers.values() for hook in layer.hooks]
    hooks += [hook for table in tables.values() for hook in table.hooks]
    for hook in hooks:
        hook.remove()
    found = {name: layer.moments(tokens, world) for name, layer in layers.items()}
    if model.lm_head is None:
        found["tok_emb.weight"] = head.moments(tables.pop("tok_emb.weight"), tokens, world)
    else:
        found["lm_head.weight"] = head.moments(None, tokens, world)
    found |= {name: table.moments(tokens, world) for name, table in tables.items()}
    return found


def label_seed(seed: int, number: int) -> int:
    """Return the seed of the labels of batch `number`, which is the same in every process."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


BATCH_TOKENS = 4096
"""Tokens of a calibration batch: this bounds the memory of the logits."""


@dataclass(frozen=True)
class Calibrated:
    """Moments by weight name, the corrections applied to them, and the number of tokens measured."""

    moments: dict[str, Moments]
    corrections: tuple[Correction, ...]
    tokens: int


def calibrate_checkpoint(
    checkpoint: Checkpoint, docs: Path | None, tokens: int, correct: bool = True, world: World = ALONE
) -> Calibrated:
    """Measure moments on training text, and correct their scale group by group on more of the text.

    This is the command `underpar calibrate`. The leading process shows progress.

    Args:
        checkpoint: the model, with config and tokenizer.
        docs: any text file; None: the sample that ships.
        tokens: about how many tokens the moments are measured on.
        correct: whether to measure and apply `trainer.fit.correct`.
        world: the processes that take part.

    Returns:
        the same in every process.

    Raises:
        FormatError: a checkpoint without config or tokenizer, or text too short for one row.
    """
    model = float_model(checkpoint, world.device)
    held: Sequence[Tensor] = ()
    batches = text_batches(checkpoint, docs, tokens + (tokens_for(model) if correct else 0))
    if correct:
        batches, held = hold_out(batches, tokens)
    total = sum(batch.numel() for batch in batches)
    with progress("calibrating", total, "token") if world.leads else nullcontext(ignore_progress) as advance:
        found = calibrate(model, batches, advance=advance, world=world)
    if not correct:
        return Calibrated(found, (), total)
    with progress("measuring groups", 1.0) if world.leads else nullcontext(ignore_progress) as advance:
        corrections = measure(model, found, held, advance, world)
    return Calibrated(corrected(found, corrections), tuple(corrections), total)


def hold_out(batches: Sequence[Tensor], tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Split rows into about `tokens` tokens to use, three quarters of all at most, and the rest.

    A single row is in both parts.
    """
    rows = torch.cat(list(batches))
    used = min(max(1, tokens // rows.shape[1]), len(rows) * 3 // 4)
    return _in_batches(rows[:used] if used else rows), _in_batches(rows[used:])


def _in_batches(rows: Tensor) -> list[Tensor]:
    return list(rows.split(max(1, BATCH_TOKENS // rows.shape[1])))


def float_model(checkpoint: Checkpoint, device: str | torch.device) -> FloatModel:
    """Make the float model of a checkpoint.

    Raises:
        FormatError: the checkpoint has no config.
    """
    if checkpoint.config is None:
        raise FormatError("checkpoint: no config found; calibrate a run folder")
    model = float_network(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict)
    return model.to(device).eval()


def text_batches(checkpoint: Checkpoint, docs: Path | None, tokens: int) -> list[Tensor]:
    """Return about `tokens` tokens of training text as rows of the model's window, int64 [B, window] each.

    Documents follow one another, each behind the token that begins one.

    Args:
        checkpoint: the model, with config and tokenizer.
        docs: any text file; None: the sample that ships.
        tokens: number of tokens.

    Raises:
        FormatError: a checkpoint without config or tokenizer, or text too short for one row.
    """
    if checkpoint.config is None or checkpoint.tokenizer is None:
        raise FormatError("checkpoint: no config or no tokenizer found; calibrate a run folder")
    window, tokenizer = checkpoint.config.window, checkpoint.tokenizer
    parts: list[NDArray[np.int64]] = []
    length = 0
    for document in train_documents() if docs is None else read_documents(docs, tokenizer):
        parts.append(np.array([tokenizer.begin, *tokenizer.encode(document).tolist()], np.int64))
        length += len(parts[-1])
        if length >= tokens:
            break
    rows = min(length, max(tokens, window)) // window
    if not rows:
        raise FormatError(f"calibration text: {length} tokens, expected at least the window of {window}; pass more")
    stream = torch.from_numpy(np.concatenate(parts)[: rows * window])
    return _in_batches(stream.view(rows, window))
