"""What the coder asks of a model, and who answers: compiled loops on a processor, torch on every other device.

Both give the same integers. `codec.exact` on torch is the reference; the processor's backend is compared with it each
time it is built, and not used where a machine computes otherwise.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from codec import frequencies
from codec.console import notes
from codec.errors import UnsupportedError
from codec.exact import Cache, ExactModel
from codec.recall import HISTORY, Memory, Recall
from codec.tokenizer import BOS

Integers = NDArray[np.int64]

_HEAD_ROWS = {"cpu": 512, "cuda": 8192}  # rows of logits that torch holds at once


class Lanes(Protocol):
    """Sequences that grow by single tokens, each in a lane numbered from 0."""

    def prefill(self, lanes: Sequence[int], tokens: Integers) -> None:
        """Start `lanes` anew with the rows of `tokens`, int64 [lanes, T]."""

    def step(
        self, lanes: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """Run one more token of some lanes and find what follows it.

        Args:
            lanes: int64 [n]; the others are idle, and begin at position 0 or with `prefill` if they run again.
            tokens: int64 [n], the token at `positions` of each lane, below the model's window.
            previous: int64 [n], the token before it (any value at position 0).
            targets: int64 [n], in [0, 2^24).

        Returns:
            (symbol, start, frequency) int64 [3, n] of the interval that contains each target.
        """

    def keep(self, lanes: Sequence[int]) -> None:
        """Drop all lanes but these, which are numbered in this order from now on."""


class Backend(Protocol):
    """A model as the coder sees it."""

    lane_bytes: int  # of memory that each lane takes

    def memory(self, documents: int) -> Any:
        """What recall is to know of so many documents whose windows are scored in turn; None without recall."""

    def score(self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None) -> NDArray[np.float64]:
        """Intervals of known tokens.

        Args:
            inputs: int64 [T] each, windows that do not see each other.
            targets: int64 [t] each, t <= T: the tokens that follow the last t inputs of each window.
            memory: of documents whose first are these, in this order; the inputs before the last t have been scored in
                earlier calls. Where all of a window is scored, its document begins. None: all windows are documents.

        Returns:
            (start, frequency, bits) float64 [3, N] of all targets in turn; see `codec.frequencies.intervals`. The bits
            are those without recall.
        """

    def lanes(self, count: int) -> Lanes:
        """`count` empty lanes."""


def make_backend(model: ExactModel, recall: Recall | None = None) -> Backend:
    """The fastest backend that agrees with the model; a note on stderr says if a processor gets the slow one.

    With `recall`, lanes remember what they have run: a document begins at position 0.
    """
    reference = TorchBackend(model, recall)
    if model.device.type != "cpu":
        return reference
    from codec.exact_cpu import CpuModel  # compiles or loads its kernels, which no other device needs

    try:
        fast = CpuModel(model, recall)
    except UnsupportedError as error:
        reason = str(error)
    else:
        if agree(fast, reference, model):
            return fast
        reason = "this machine's processor or compiler does not compute it as torch does"
    notes.print(
        f"underpar: the model runs without its compiled loops, slowly: {reason}", highlight=False, soft_wrap=True
    )
    return reference


def agree(a: Backend, b: Backend, model: ExactModel) -> bool:
    """Whether two backends give the same integers on a few windows and steps."""
    size, vocabulary = min(model.config.window, 12), model.config.vocab_size
    tokens = np.arange(2 * (size + 1)).reshape(2, -1) * 7919 % vocabulary
    inputs, targets = list(tokens[:, :-1]), list(tokens[:, 1:])
    if not np.array_equal(a.score(inputs, targets)[:2], b.score(inputs, targets)[:2]):
        return False
    both = np.arange(2)
    found = []
    for backend in (a, b):
        lanes = backend.lanes(2)
        lanes.prefill([1], tokens[1:, : size - 1])
        positions = np.array([0, size - 1])
        here, before = tokens[both, positions], tokens[both, positions - 1]
        found.append(lanes.step(both, here, before, positions, np.array([frequencies.TOTAL // 2, 12345])))
    return np.array_equal(found[0], found[1])


class TorchBackend:
    """The reference, on the model's device."""

    def __init__(self, model: ExactModel, recall: Recall | None = None):
        self._model, self._recall = model, recall
        c = model.config
        self.lane_bytes = 2 * len(c.schedule) * c.kv_dim * c.window * 8
        if recall:
            self.lane_bytes += HISTORY * (5 * c.model_dim + 64)  # keys of 8 bits, and of 32 while they are multiplied

    def memory(self, documents: int) -> Memory | None:
        """See `Backend`."""
        c = self._model.config
        return Memory(self._recall, documents, c.model_dim, self._model.device) if self._recall else None

    def score(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Memory | None = None
    ) -> NDArray[np.float64]:
        """See `Backend`."""
        longest = max(map(len, inputs))
        tokens = np.full((len(inputs), longest), BOS)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        hidden, step = self._model.forward(self._tensor(tokens))
        ends = [row * longest + len(window) for row, window in enumerate(inputs)]
        rows = np.concatenate([np.arange(end - len(t), end) for end, t in zip(ends, targets, strict=True)])
        hidden, step, wanted = hidden.flatten(0, 1), step.flatten(0, 1), self._tensor(np.concatenate(targets))
        out, size = np.empty((3, len(rows))), _HEAD_ROWS[self._model.device.type]
        for at in range(0, len(rows), size):
            index = self._tensor(rows[at : at + size])
            levels = self._model.levels(hidden[index], step[index])
            parts = frequencies.intervals(levels, wanted[at : at + size])
            out[:, at : at + size] = torch.stack([part.double() for part in parts]).cpu().numpy()
        if memory := memory or self.memory(len(inputs)):
            out[:2] = self._recalled(inputs, targets, (hidden, step), longest, memory)
        return out

    def _recalled(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        hidden: tuple[torch.Tensor, torch.Tensor],
        longest: int,
        memory: Memory,
    ) -> NDArray[np.float64]:
        """(start, frequency) [2, N] with recall: documents side by side, one token of each at a time."""
        firsts = [len(window) - len(after) for window, after in zip(inputs, targets, strict=True)]
        begins = np.cumsum([0, *map(len, targets)])
        out = np.empty((2, begins[-1]))
        for position in range(min(firsts), longest):
            running = [n for n, window in enumerate(inputs) if firsts[n] <= position < len(window)]
            if not running:
                continue
            places = [position - firsts[n] for n in running]
            following = [targets[n][place] for n, place in zip(running, places, strict=True)]
            tokens = self._tensor(np.array([inputs[n][position] for n in running]))
            lanes = self._tensor(np.array(running))
            here = hidden[0][lanes * longest + position], hidden[1][lanes * longest + position]
            levels = memory.step(lanes, torch.full_like(lanes, position), tokens, here, self._model.levels(*here))
            found = torch.stack(frequencies.intervals(levels, self._tensor(np.array(following)))[:2])
            out[:, begins[running] + places] = found.cpu().numpy()
        return out

    def lanes(self, count: int) -> "TorchLanes":
        """See `Backend`."""
        return TorchLanes(self._model, count, self.memory(count))

    def _tensor(self, values: Integers) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)


class TorchLanes:
    """Lanes of a `TorchBackend`: every step runs all of them, idle ones too."""

    def __init__(self, model: ExactModel, count: int, memory: Memory | None):
        self._model, self._count, self._memory = model, count, memory
        self._cache = model.new_cache(count)

    def prefill(self, lanes: Sequence[int], tokens: Integers) -> None:
        """See `Lanes`."""
        device = self._model.device
        self._model.forward(torch.from_numpy(tokens).to(device), self._cache, torch.tensor(lanes, device=device))

    def step(
        self, lanes: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """See `Lanes`."""
        device = self._model.device
        inputs = np.zeros((4, self._count), np.int64)
        inputs[:, lanes] = tokens, previous, positions, targets
        all_tokens, all_previous, all_positions, all_targets = torch.from_numpy(inputs).to(device)
        hidden, step = self._model.step(all_tokens, all_previous, all_positions, self._cache)
        levels = self._model.levels(hidden, step)[:, 0]
        if self._memory:
            index = torch.from_numpy(lanes).to(device)
            here = hidden[index, 0], step[index, 0]
            raised = self._memory.step(index, all_positions[index], all_tokens[index], here, levels[index])
            levels = levels.index_copy(0, index, raised)
        found = torch.stack(frequencies.find(levels, all_targets))
        return found.cpu().numpy()[:, lanes]

    def keep(self, lanes: Sequence[int]) -> None:
        """See `Lanes`."""
        index = torch.tensor(lanes, device=self._model.device)
        self._count = len(lanes)
        if self._memory:
            self._memory.keep(index)
        self._cache = Cache([k[index] for k in self._cache.keys], [v[index] for v in self._cache.values])
