"""Calibration: the second moments of every matrix's inputs and output gradients on training text.

Labels are sampled from the model, so the gradients' second moment is the Fisher information and not its empirical
cousin. Text is streamed batch by batch; the sums stay on the model's device.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from codec.bigram import bigram_rows
from codec.calibration import Moments
from codec.checkpoint import Checkpoint
from codec.console import Advance, ignore_progress
from codec.errors import FormatError
from codec.tokenizer import BOS
from trainer.documents import read_documents
from trainer.embedded import train_documents
from trainer.model import GPT


class _Layer:
    """Sums over the uses of a linear layer: x x^T of its inputs, squares of the gradients at its outputs."""

    def __init__(self, layer: nn.Linear):
        rows, columns = layer.weight.shape
        self.inputs = layer.weight.new_zeros(columns, columns)
        self.outputs = layer.weight.new_zeros(rows)
        self.uses = 0
        self.hooks: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._see),
            layer.register_full_backward_hook(self._feel),
        ]

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2)
        self.inputs += x.T @ x
        self.uses += len(x)

    def _feel(self, _: nn.Module, __: object, gradients: tuple[Tensor, ...]) -> None:
        self.outputs += gradients[0].detach().flatten(0, -2).square().sum(0)

    def moments(self, tokens: int) -> Moments:
        return Moments((self.inputs / max(1, self.uses)).cpu().numpy(), (self.outputs / tokens).cpu().numpy())


class _Table:
    """Sums over the look-ups of a table: gradients g g^T at its rows, and how often each row was looked up."""

    def __init__(self, table: nn.Embedding):
        self.gradients = table.weight.new_zeros(table.embedding_dim, table.embedding_dim)
        self.visits = table.weight.new_zeros(table.num_embeddings)
        self.hooks: list[RemovableHandle] = [table.register_forward_hook(self._looked_up)]

    def _looked_up(self, _: nn.Module, __: object, output: Tensor) -> None:
        output.register_hook(self._feel)

    def _feel(self, gradient: Tensor) -> None:
        g = gradient.detach().flatten(0, -2)
        self.gradients += g.T @ g

    def visit(self, rows: Tensor) -> None:
        self.visits += torch.bincount(rows.flatten(), minlength=len(self.visits))

    def moments(self, tokens: int) -> Moments:
        return Moments((self.gradients / tokens).cpu().numpy(), (self.visits / tokens).cpu().numpy())


class _Head:
    """Sums over the tied embedding as the last layer: its inputs, and the Fisher information of each logit."""

    def __init__(self, model: GPT):
        self.inputs = torch.zeros_like(model.tok_emb.weight.T @ model.tok_emb.weight).detach()
        self.chances = model.tok_emb.weight.new_zeros(model.config.vocab_size)
        self.information = torch.zeros_like(self.chances)
        self.cap = model.config.logit_softcap

    def see(self, hidden: Tensor, logits: Tensor, chances: Tensor) -> None:
        self.inputs += hidden.T @ hidden
        slope = 1 - (logits / self.cap).square()  # of the softcap
        self.chances += chances.sum(0)
        self.information += (chances * (1 - chances) * slope.square()).sum(0)

    def moments(self, table: _Table, tokens: int) -> Moments:
        """Both uses of the tied embedding in one: a row is looked up about as often as its token is likely."""
        lookups = self.chances.sum() / self.information.sum()
        inputs = (self.inputs + lookups * table.gradients) / tokens
        return Moments(inputs.cpu().numpy(), (self.information / tokens).cpu().numpy())


def calibrate(
    model: GPT, batches: Iterable[Tensor], seed: int = 0, advance: Advance = ignore_progress
) -> dict[str, Moments]:
    """Moments of every linear layer, of the tied embedding and of the hash table.

    Args:
        model: in float32; its gradients are used and cleared.
        batches: token ids, int64 [B, T] each; at least one.
        seed: of the sampled labels.
        advance: told the tokens that were seen.

    Returns:
        Moments by the name of the weight.
    """
    layers = {f"{name}.weight": _Layer(m) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    tables = {f"{name}.weight": _Table(m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    head = _Head(model)
    generator = torch.Generator(model.tok_emb.weight.device).manual_seed(seed)
    tokens = 0
    for rows in batches:
        batch = rows.to(model.tok_emb.weight.device)
        hidden = model.hidden(batch)
        logits = model.logits(hidden).flatten(0, 1)
        chances = logits.detach().softmax(-1)
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        head.see(hidden.detach().flatten(0, 1), logits.detach(), chances)
        nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        model.zero_grad(set_to_none=True)
        if model.bigram is not None:
            tables["bigram.embed.weight"].visit(bigram_rows(batch, model.config.bigram_buckets))
        tokens += batch.numel()
        advance(batch.numel())
    hooks = [h for layer in layers.values() for h in layer.hooks] + [
        h for table in tables.values() for h in table.hooks
    ]
    for hook in hooks:
        hook.remove()
    found = {name: layer.moments(tokens) for name, layer in layers.items()}
    found |= {name: table.moments(tokens) for name, table in tables.items()}
    found["tok_emb.weight"] = head.moments(tables["tok_emb.weight"], tokens)
    return found


BATCH_TOKENS = 4096
"""Tokens of a calibration batch: it bounds the memory of their logits."""


def float_model(checkpoint: Checkpoint, device: str) -> GPT:
    """The float model of a checkpoint. Raises FormatError for one without a config."""
    if checkpoint.config is None:
        raise FormatError("checkpoint: it has no config; calibrate a run folder")
    model = GPT(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict)
    return model.to(device).eval()


def text_batches(checkpoint: Checkpoint, docs: Path | None, tokens: int) -> list[Tensor]:
    """About `tokens` tokens of training text as rows of the model's window, int64 [B, window] each.

    Documents follow one another behind BOS, as in training. `docs` is any text file, None the sample that ships.

    Raises:
        FormatError: a checkpoint without config or tokenizer, or text too short for one row.
    """
    if checkpoint.config is None or checkpoint.tokenizer is None:
        raise FormatError("checkpoint: it has no config or no tokenizer; calibrate a run folder")
    window, tokenizer = checkpoint.config.window, checkpoint.tokenizer
    stream: list[int] = []
    for document in train_documents() if docs is None else read_documents(docs, tokenizer):
        stream += [BOS, *tokenizer.encode(document).tolist()]
        if len(stream) >= tokens:
            break
    rows = min(len(stream), max(tokens, window)) // window
    if not rows:
        raise FormatError(
            f"calibration text: {len(stream)} tokens, expected at least the window of {window}; pass more"
        )
    return list(torch.tensor(stream[: rows * window]).view(rows, window).split(max(1, BATCH_TOKENS // window)))
