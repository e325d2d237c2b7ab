"""What the coder asks of a model, and who answers: compiled loops on a processor, Triton kernels on a GPU, or torch.

All give the same integers. `codec.exact.model` on torch is the reference; a compiled backend is compared with it each
time it is built, and not used where a machine computes otherwise.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from codec.console import notes
from codec.entropy import frequencies, range_coder
from codec.errors import UnsupportedError
from codec.exact.chunks import BAND_UNIT
from codec.exact.host_decoder import Decoder, HostDecoder, Integers
from codec.exact.kv_cache import Cache, Past
from codec.exact.model import ExactModel
from codec.exact.network import ExactNetwork
from codec.exact.transformer import ExactTransformer
from codec.exact.recall import HISTORY, Memory, Recall
from codec.model.config import AnyConfig

_SELF_TEST = {"cpu": 20, "cuda": 100}  # tokens of a window on which backends are compared: above a block of keys
_SELF_DOCUMENT = {"cpu": 24, "cuda": 136}  # of a document: above a block of keys, and a page of a cache
_SELF_WINDOWS = {"cpu": 2, "cuda": 48}  # such windows: enough rows for the kernels that large batches take
_SELF_CHUNK = {"cpu": 8, "cuda": BAND_UNIT}  # of documents; a GPU takes no shorter ones
_HEAD_ROWS = {"cpu": 512, "cuda": 8192}  # rows of logits that torch holds at once


class Backend(Protocol):
    """A model as the coder sees it."""

    def lane_bytes(self, tokens: int) -> int:
        """Memory that a lane of a decoder takes while it has a document of so many tokens."""

    def memory(self, documents: int, tokens: int) -> Any:
        """What recall is to know of so many documents, of `tokens` tokens at most, whose chunks are scored in turn.

        None without recall.
        """

    def past(self, documents: int, window: int) -> Any:
        """What the chunks of so many documents are to see of the chunks before.

        Each token sees the last `window` tokens, itself included.
        """

    def score(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> NDArray[np.float64]:
        """Intervals of known tokens.

        Args:
            inputs: int64 [T] each, windows that do not see each other.
            targets: int64 [t] each, t <= T: the tokens that follow the last t inputs of each window.
            memory: of documents whose first are these, in this order; the inputs before the last t have been scored in
                earlier calls. Where all of a window is scored, its document begins, unless there is a past. None: all
                windows are documents.
            past: of documents whose first are these, in this order, and of which the inputs are the next chunks, taken
                in by the call. All of a chunk is scored. Those of documents that go on behind them are of one length, a
                multiple of BAND_UNIT; none is longer than those of `codec.exact.chunks.band_chunks`.

        Returns:
            (start, frequency, bits) float64 [3, N] of all targets in turn; see `codec.entropy.frequencies.intervals`.
            The bits are those without recall.
        """

    def launch(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> Callable[[], NDArray[np.float64]]:
        """What waits for `score`; a GPU is at it when this returns, and may be given more before it is waited for.

        Where nothing goes on by itself, all is done by then.
        """
        found = self.score(inputs, targets, memory, past)
        return lambda: found

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> Decoder:
        """`count` idle lanes that will decode parts of `data`.

        Each token of a lane sees the last `window` tokens, itself included. With `room`, in bytes, for less than all
        lanes may take, a lane waits while there is none; the longest document always has room.
        """


def make_backend(model: ExactNetwork, recall: Recall | None = None) -> Backend:
    """The fastest backend that agrees with the model; a note on stderr says if it is the slow one, and why.

    With `recall`, lanes remember what they have run: a document begins at position 0.
    """
    reference = TorchBackend(model, recall)
    try:
        fast = _fast_backend(model, recall)
    except UnsupportedError as error:
        reason = str(error)
    else:
        if agree(fast, reference, model):
            return fast
        reason = "this machine's processor or compiler does not compute it as torch does"
    notes.print(
        f"underpar: the model runs without its compiled kernels, slowly: {reason}", highlight=False, soft_wrap=True
    )
    return reference


def _fast_backend(model: ExactNetwork, recall: Recall | None) -> Backend:
    """Compiled kernels for the model's device. Raises UnsupportedError where there are none, or not for this model."""
    if model.device.type == "cpu":
        from codec.backends.cpu.backend import CpuModel  # compiles or loads its kernels, which no other device needs

        return CpuModel(model, recall)
    if model.device.type == "cuda" and find_spec("triton"):
        from codec.backends.cuda.network import CudaModel

        return CudaModel(model, recall)
    raise UnsupportedError(f"there are none for {model.device.type}")


def agree(a: Backend, b: Backend, model: ExactNetwork) -> bool:
    """Whether two backends give the same integers for windows and documents, and lanes of `a` decode the documents."""
    kind, window, vocabulary = model.device.type, model.config.window, model.config.vocab_size
    size = min(window, _SELF_TEST[kind])
    tokens = np.arange(_SELF_WINDOWS[kind] * (size + 1)).reshape(-1, size + 1) * 7919 % vocabulary
    documents = np.arange(2 * _SELF_DOCUMENT[kind]).reshape(2, -1) * 7919 % vocabulary
    for rows in (tokens, documents):
        rows[1] %= 5  # so that recall has much to find
    documents[documents == model.config.end] = (model.config.end + 2) % vocabulary
    documents[:, 0], documents[:, -1] = model.config.begin, model.config.end
    whole = [backend.score(list(tokens[:, :-1]), list(tokens[:, 1:]))[:2] for backend in (a, b)]
    if not np.array_equal(*whole):
        return False
    for width in (window, min(window, _SELF_CHUNK[kind] * 3 // 4)):
        one, other = (_in_chunks(backend, documents, width, _SELF_CHUNK[kind]) for backend in (a, b))
        if not (np.array_equal(one, other) and _decodes(a, model.config, documents, one, width)):
            return False
    return True


def _in_chunks(backend: Backend, documents: Integers, window: int, chunk: int) -> Integers:
    """(start, frequency) int64 [2, documents, T - 1] of documents [documents, T], scored in chunks of some tokens."""
    count, length = documents.shape
    memory, past = backend.memory(count, length), backend.past(count, window)
    parts = []
    for at in range(0, length - 1, chunk):
        targets = documents[:, at + 1 : at + chunk + 1]
        inputs = documents[:, at : at + targets.shape[1]]
        parts.append(backend.score(list(inputs), list(targets), memory, past)[:2].reshape(2, *targets.shape))
    return np.concatenate(parts, 2).astype(np.int64)


def _decodes(backend: Backend, config: AnyConfig, documents: Integers, intervals: Integers, window: int) -> bool:
    """Whether lanes decode two documents, int64 [2, T], of these intervals; one of them is dropped on the way.

    On a GPU a step is captured anew for the other.
    """
    payloads, bits = [], frequencies.total_bits(config.vocab_size)
    for starts, shares in intervals.swapaxes(0, 1).copy():
        state, out = range_coder.new_encoder(), np.empty(range_coder.MAX_SYMBOL_BYTES * len(starts) + 8, np.uint8)
        range_coder.encode_intervals(state, out, starts, shares, bits)
        payloads.append(out[: range_coder.finish(state, out)])
    sizes = np.array(list(map(len, payloads)))
    decoder = backend.decoder(2, np.concatenate(payloads), window)
    decoder.load([0, 1], np.cumsum(sizes) - sizes, np.cumsum(sizes))
    at, length = 1, documents.shape[1]
    while at < length:
        found = decoder.launch()()[0]
        if not np.array_equal(found[: length - at], documents[:, at : at + len(found)].T):
            return False
        at += len(found)
        if at > length // 2 and len(documents) == 2:
            decoder.keep([1])
            documents = documents[1:]
    return True


class TorchBackend(Backend):
    """The reference, on the model's device."""

    def __init__(self, model: ExactNetwork, recall: Recall | None = None):
        self._model, self._recall = model, recall
        c = model.config
        self._lane_bytes = 2 * len(c.schedule) * c.kv_dim * c.window * 8
        if recall:
            self._lane_bytes += HISTORY * (5 * c.model_dim + 64)  # keys of 8 bits, and of 32 while they are multiplied

    def lane_bytes(self, tokens: int) -> int:
        """See `Backend`."""
        return self._lane_bytes

    def memory(self, documents: int, tokens: int) -> Memory | None:
        """See `Backend`."""
        if not self._recall:
            return None
        return Memory(self._recall, documents, self._model.config.model_dim, self._model.device, min(tokens, HISTORY))

    def past(self, documents: int, window: int) -> Past:
        """See `Backend`."""
        return self._model.new_past(documents, window)

    def score(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        memory: Memory | None = None,
        past: Past | None = None,
    ) -> NDArray[np.float64]:
        """See `Backend`."""
        begin = past.length if past else 0
        longest = max(map(len, inputs))
        tokens = np.zeros((len(inputs), longest), np.int64)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        hidden, step = self._model.forward(self._tensor(tokens), past=past)
        ends = [row * longest + len(window) for row, window in enumerate(inputs)]
        rows = np.concatenate([np.arange(end - len(t), end) for end, t in zip(ends, targets, strict=True)])
        hidden, step, wanted = hidden.flatten(0, 1), step.flatten(0, 1), self._tensor(np.concatenate(targets))
        out, size = np.empty((3, len(rows))), _HEAD_ROWS[self._model.device.type]
        for at in range(0, len(rows), size):
            index = self._tensor(rows[at : at + size])
            levels = self._model.levels(hidden[index], step[index])
            parts = frequencies.intervals(levels, wanted[at : at + size])
            out[:, at : at + size] = torch.stack([part.double() for part in parts]).cpu().numpy()
        if memory := memory or self.memory(len(inputs), longest):
            out[:2] = self._recalled(inputs, targets, (hidden, step), longest, memory, begin)
        return out

    def _recalled(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        hidden: tuple[torch.Tensor, torch.Tensor],
        longest: int,
        memory: Memory,
        begin: int,
    ) -> NDArray[np.float64]:
        """(start, frequency) [2, N] with recall: documents side by side, one token of each at a time.

        The first inputs are at position `begin`.
        """
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
            levels = memory.step(
                lanes, torch.full_like(lanes, begin + position), tokens, here, self._model.levels(*here)
            )
            found = torch.stack(frequencies.intervals(levels, self._tensor(np.array(following)))[:2])
            out[:, begins[running] + places] = found.cpu().numpy()
        return out

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> HostDecoder:
        """See `Backend`; all lanes have room for whole windows."""
        lanes = TorchLanes(self._model, count, window, self.memory(count, HISTORY))
        return HostDecoder(self._model.config, lanes, count, data)

    def _tensor(self, values: Integers) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)


class TorchLanes:
    """`codec.exact.host_decoder.Lanes` of a `TorchBackend`: every step runs all of them, idle ones too."""

    def __init__(self, model: ExactNetwork, count: int, window: int, memory: Memory | None):
        self._model, self._count, self._memory = model, count, memory
        self._cache = model.new_cache(count, window)

    def step(
        self, lanes: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """See `codec.exact.host_decoder.Lanes`."""
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
        """See `codec.exact.host_decoder.Lanes`."""
        index = torch.tensor(lanes, device=self._model.device)
        self._count = len(lanes)
        if self._memory:
            self._memory.keep(index)
        self._cache = Cache([k[index] for k in self._cache.keys], [v[index] for v in self._cache.values])
