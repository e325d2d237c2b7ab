"""Define the protocol between the audit and a claim's predictor, and adapters for plain functions and PyTorch modules.

A predictor is an object with three methods. The predictor works on B documents side by side, one token of each at a
time:

- `reset(documents)`: begin B documents. `documents` is int64 [B]: the first token of each document, which a decoder
  knows (BOS; in a flat stream the token before the row). A predictor may keep what it learned from earlier documents.
- `distribution()`: float [B, V], the probability of every token of the vocabulary to come next in each document,
  given the tokens that `reset` and `update` have told. Each row sums to 1.
- `update(tokens)`: int64 [B], the tokens that came. -1 stands for a document that has ended; its row of later
  distributions is ignored.

A decoder can tell a predictor no more than that. The audit never tells a length, a later token or the text as a whole.
A script that scores by teacher forcing has the whole text, and using the text makes scores that are too good. To have
such a script audited as it is, give the predictor a fourth method:

- `peek(documents)`: a list of int64 arrays, the tokens of each document, called after `reset`. The distributions that
  follow are those behind the claimed score. The audit calls `peek` with text whose future was changed and compares the
  distributions; a decoder never calls `peek`.

A claim is a folder with a `claim.toml`, the code, and what the code reads:

    claimed_bpb = 1.509407
    predictor = "predictor.py:make"     # make() returns the predictor; it runs in a folder with this file and `files`
    files = ["model.int8.ptz"]          # all that the code reads beside itself; these bytes and the code's count
    tokenizer = "fineweb_1024_bpe.model"  # a SentencePiece model, or "byte260"
    batch = 16                          # B, at most; the default is 16. 1 lets a document learn from all before it

    [text]                              # the set that the claim is about
    path = "val.jsonl"                  # text, JSON Lines, parquet, or token shards (.bin, .bin.xz)
    documents = 120                     # only the first 120; default: all
    # layout = "flat"                   # a stream in rows of `window` targets, as the challenge scores; the default is
    # window = 1024                     # "documents": each begins with BOS, and its end is coded as a BOS
    # targets = 65536                   # only the first 65,536 tokens of the stream

    [scored]                            # what the score was made of; everything is optional
    tokens = "tokens.bin"               # a shard with the author's own tokens, one BOS before each document
    order = "longest_first"             # or "shortest_first", or a JSON file of the documents' numbers; default: as is
    ends = "given"                      # the ends of the documents were not coded
    side_bits = 0                       # what the claim itself charges for order and lengths, in bits
    documents = 120                     # how many of the documents were scored, the first in that order
    byte_table = "bytes.json"           # JSON list: as how many bytes the author counts each token
    text_bytes = 349287                 # or: the bytes that the author divided by

A predictor in ten lines:

    import numpy as np
    from eval.audit.predictor import FunctionPredictor

    def next_token(ids):                        # int64 [B, T] -> probabilities [B, 1024]
        p = np.ones((len(ids), 1024))
        p[np.arange(len(ids)), ids[:, -1]] = 20  # the last token again, perhaps
        return p / p.sum(-1, keepdims=True)

    def make():
        return FunctionPredictor(next_token)

`underpar audit FOLDER` then audits the claim.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ENDED = -1
"""The token that `update` gets for a document that has ended."""


@runtime_checkable
class Predictor(Protocol):
    """A predictor as the audit calls it; the module's docstring defines each method."""

    def reset(self, documents: NDArray[np.int64]) -> None: ...

    def distribution(self) -> NDArray[np.floating]: ...

    def update(self, tokens: NDArray[np.int64]) -> None: ...


class _History:
    """The tokens so far, int64 [B, T]; a document that has ended repeats its last token, so that rows stay full."""

    def __init__(self) -> None:
        self.tokens = np.zeros((0, 1), np.int64)

    def reset(self, documents: NDArray[np.int64]) -> None:
        self.tokens = np.array(documents, np.int64)[:, None]

    def update(self, tokens: NDArray[np.int64]) -> None:
        came = np.where(tokens == ENDED, self.tokens[:, -1], tokens)
        self.tokens = np.concatenate([self.tokens, came[:, None]], axis=1)

    def context(self, window: int, stride: int) -> NDArray[np.int64]:
        """Return the inputs that predict the next token, in the windows of `eval.score.windows.document_windows`."""
        return self.tokens[:, context_start(self.tokens.shape[1], window, stride) :]


def context_start(inputs: int, window: int, stride: int) -> int:
    """Return the first input of the window that predicts from the last of `inputs` inputs; windows move by `stride`.

    >>> [context_start(n, 6, 3) for n in (1, 6, 7, 9, 10)]
    [0, 0, 3, 3, 6]
    """
    return 0 if inputs <= window else -(-(inputs - window) // stride) * stride


class FunctionPredictor:
    """A predictor from a plain callable.

    Args:
        function: int64 [B, T] -> probabilities [B, V] of the token after each row.
        window: the most tokens that the function is given.
        stride: tokens by which a full window moves; by default 1, which gives every token the longest context.
    """

    def __init__(
        self, function: Callable[[NDArray[np.int64]], NDArray[np.floating]], window: int = 1 << 30, stride: int = 1
    ):
        self._function, self._window, self._stride = function, window, stride
        self._history = _History()
        self.reset, self.update = self._history.reset, self._history.update

    def distribution(self) -> NDArray[np.floating]:
        return self._function(self._history.context(self._window, self._stride))


class TorchPredictor:
    """A predictor from any PyTorch module that maps token ids int64 [B, T] to logits [B, T, V].

    Each token runs its whole context again, so this adapter suits short windows; for a module with a KV cache write the
    three methods. `peek` scores as teacher forcing does, all tokens of a window at once, which reveals a module that
    looks ahead.

    Args:
        module: in evaluation mode, on the CPU.
        window: the most tokens that the module is given.
        stride: tokens by which a full window moves; by default half a window.
    """

    def __init__(self, module: "torch.nn.Module", window: int, stride: int | None = None):
        self._module, self._window, self._stride = module, window, stride or max(1, window // 2)
        self._history = _History()
        self._forced: NDArray[np.float64] | None = None  # [B, T, V]

    def reset(self, documents: NDArray[np.int64]) -> None:
        self._history.reset(documents)
        self._forced = None

    def update(self, tokens: NDArray[np.int64]) -> None:
        self._history.update(tokens)

    def distribution(self) -> NDArray[np.floating]:
        if self._forced is not None:
            return self._forced[:, self._history.tokens.shape[1] - 1]
        return self._probabilities(self._history.context(self._window, self._stride))[:, -1]

    def peek(self, documents: Sequence[NDArray[np.int64]]) -> None:
        longest = max(map(len, documents))
        inputs = np.zeros((len(documents), longest), np.int64)
        inputs[:, 0] = self._history.tokens[:, 0]
        for row, document in zip(inputs, documents, strict=True):
            row[1 : len(document)] = document[:-1]
        parts: list[NDArray[np.float64]] = []
        done = 0
        while done < longest:
            start = context_start(done + 1, self._window, self._stride)
            end = min(start + self._window, longest)
            parts.append(self._probabilities(inputs[:, start:end])[:, done - start :])
            done = end
        self._forced = np.concatenate(parts, axis=1)

    def _probabilities(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        import torch

        with torch.inference_mode():
            return self._module(torch.from_numpy(np.ascontiguousarray(ids))).double().softmax(-1).numpy()
