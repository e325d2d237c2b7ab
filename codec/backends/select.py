"""Choose the fastest backend that agrees with the reference.

Compiled loops on a processor and Triton kernels on a GPU give the integers of `codec.exact.reference`. A compiled
backend is compared with the reference each time it is built, and not used where a machine computes otherwise.
"""

from importlib.util import find_spec

import numpy as np

from codec.console import notes
from codec.entropy import frequencies, range_coder
from codec.errors import UnsupportedError
from codec.exact.backend import Backend, Integers
from codec.exact.chunks import BAND_UNIT
from codec.exact.network import ExactNetwork
from codec.exact.recall import Recall
from codec.exact.reference import TorchBackend
from codec.exact.transformer import AnyExact, ExactTransformer
from codec.model.config import AnyConfig

_SELF_TEST = {"cpu": 20, "cuda": 100}  # tokens of a window on which backends are compared: above a block of keys
_SELF_DOCUMENT = {"cpu": 24, "cuda": 136}  # of a document: above a block of keys, and a page of a cache
_SELF_WINDOWS = {"cpu": 2, "cuda": 48}  # such windows: enough rows for the kernels that large batches take
_SELF_CHUNK = {"cpu": 8, "cuda": BAND_UNIT}  # of documents; a GPU takes no shorter ones


def make_backend(model: AnyExact, recall: Recall | None = None) -> Backend:
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


def _fast_backend(model: AnyExact, recall: Recall | None) -> Backend:
    """Compiled kernels for the model's device. Raises UnsupportedError where there are none, or not for this model."""
    if model.device.type == "cpu":
        # These compile or load kernels, which no other device needs.
        if isinstance(model, ExactTransformer):
            from codec.backends.cpu.transformer import CpuTransformer

            return CpuTransformer(model, recall)
        from codec.backends.cpu.backend import CpuModel

        return CpuModel(model, recall)
    if model.device.type == "cuda" and find_spec("triton"):
        if isinstance(model, ExactTransformer):
            from codec.backends.cuda.families.network import CudaTransformer

            return CudaTransformer(model, recall)
        from codec.backends.cuda.backend import CudaBackend

        return CudaBackend(model, recall)
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
    found, expected = (backend.score(list(tokens[:, :-1]), list(tokens[:, 1:]))[:2] for backend in (a, b))
    if not np.array_equal(found, expected):
        return False
    # A GPU takes chunks that windows are multiples of, where documents begin anew behind each.
    whole_chunks = model.config.restarts and kind == "cuda"
    for width in (window, min(window, _SELF_CHUNK[kind] * (4 if whole_chunks else 3) // 4)):
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
