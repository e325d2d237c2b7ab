"""Score rows of tokens with a float model in batches, here or on a cluster."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from codec.console import Advance, ignore_progress
from codec.model.config import AnyConfig
from trainer.model.attention import SlidingWindow
from trainer.model.build import FloatModel

MAX_LOGITS = 1 << 24
"""Elements of a batch's logits, 64 MiB in float32. The peak of memory is a few copies of the logits."""

GPU_LOGITS = 1 << 27
"""Elements of a batch's logits on a GPU, 512 MiB: larger batches, so that the GPU waits less for the host (chosen by
size, not by a measurement)."""

ROUND_LENGTH = 64
"""Rows are padded to a multiple of this many tokens, so that documents of unlike length share a batch. Attention is
causal: the padding behind a row does not change the row's logits."""


class Row(NamedTuple):
    """A window: tokens [inputs + 1], leading targets that do not count, and the owner whose cost the window adds to."""

    tokens: NDArray[np.integer]
    skip: int
    owner: int


class Request(NamedTuple):
    """A batch to score: a method of `Scorer`, and its arguments, of which the first are the rows."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Runner:
    """A way to have batches scored.

    Attributes:
        most_logits: elements of a batch's logits at most.
        run: scores batches, and yields each with the nats of its rows, in the batches' order.
    """

    most_logits: int
    run: Callable[[Iterator[Request]], Iterator[tuple[Request, list[float]]]]


class Scorer:
    """A float model that scores batches."""

    def __init__(self, model: FloatModel):
        self._model = model

    def rows(self, rows: Sequence[Row], length: int) -> list[float]:
        """Return the nats of the targets of each row, of rows of at most `length` inputs."""
        return self._nats(rows, length)

    def documents(self, rows: Sequence[Row]) -> list[float]:
        """Return the nats of the targets of each document, of which the longest comes first.

        The documents run side by side, a window of each at a time. Each token sees the last `window` tokens, itself
        included, through the keys and values that earlier windows left in the KV cache.
        """
        window = self._model.config.window
        totals, sliding = [0.0] * len(rows), SlidingWindow(window)
        for begin in range(0, len(rows[0].tokens) - 1, window):
            running = [row for row in rows if len(row.tokens) - 1 > begin]
            batch = [Row(row.tokens[begin : begin + window + 1], 0, row.owner) for row in running]
            for n, nats in enumerate(self._nats(batch, len(batch[0].tokens) - 1, sliding)):
                totals[n] += nats
        return totals

    @torch.inference_mode()
    def _nats(self, rows: Sequence[Row], length: int, sliding: SlidingWindow | None = None) -> list[float]:
        tokens = np.zeros((len(rows), length + 1), np.int64)
        counted = np.zeros((len(rows), length), np.bool_)
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = row.tokens
            counted[i, row.skip : len(row.tokens) - 1] = True
        device = self._model.tok_emb.weight.device
        on_device, mask = torch.from_numpy(tokens).to(device), torch.from_numpy(counted).to(device)
        logits = self._model.logits(self._model.hidden(on_device[:, :-1], sliding))
        losses = F.cross_entropy(logits[mask], on_device[:, 1:][mask], reduction="none").double()
        owner = mask.nonzero()[:, 0]
        return torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, owner, losses).tolist()


def run_here(model: FloatModel) -> Runner:
    """Return what scores batches in this process."""
    scorer = Scorer(model)

    def run(requests: Iterator[Request]) -> Iterator[tuple[Request, list[float]]]:
        for request in requests:
            yield request, getattr(scorer, request.method)(*request.arguments)

    return Runner(GPU_LOGITS if model.tok_emb.weight.is_cuda else MAX_LOGITS, run)


def row_nats(
    runner: Runner, config: AnyConfig, rows: Iterable[Row], owners: int, advance: Advance = ignore_progress
) -> NDArray[np.float64]:
    """Sum the nats of the targets of each owner's rows, float64 [owners]."""
    waiting: dict[int, list[Row]] = defaultdict(list)

    def requests() -> Iterator[Request]:
        for row in rows:
            length = min(-(-(len(row.tokens) - 1) // ROUND_LENGTH) * ROUND_LENGTH, config.window)
            waiting[length].append(row)
            if (len(waiting[length]) + 1) * length * config.vocab_size > runner.most_logits:
                yield Request("rows", (waiting.pop(length), length))
        for length in list(waiting):
            yield Request("rows", (waiting.pop(length), length))

    return _totals(runner, requests(), owners, advance)


def band_nats(
    runner: Runner, config: AnyConfig, rows: Iterable[Row], owners: int, advance: Advance = ignore_progress
) -> NDArray[np.float64]:
    """Sum the nats of the targets of each owner's documents under sliding-window attention, float64 [owners]."""
    count = max(1, runner.most_logits // (config.window * config.vocab_size))
    ordered = sorted(rows, key=lambda row: -len(row.tokens))
    requests = (Request("documents", (ordered[at : at + count],)) for at in range(0, len(ordered), count))
    return _totals(runner, requests, owners, advance)


def _totals(runner: Runner, requests: Iterator[Request], owners: int, advance: Advance) -> NDArray[np.float64]:
    """Have batches scored, and sum the nats of each owner; `advance` is called with targets."""
    totals = np.zeros(owners, np.float64)
    for request, costs in runner.run(requests):
        for row, nats in zip(request.arguments[0], costs, strict=True):
            totals[row.owner] += nats
        advance(sum(len(row.tokens) - 1 - row.skip for row in request.arguments[0]))
    return totals
