"""Plan the windows of a score: which tokens a model sees when it predicts each token. Pure arithmetic.

A stream or document has `length` inputs; input i predicts target i, the next token. A plan cuts the inputs into windows
that fit the model, and tells for each window the first input whose prediction counts.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from codec.errors import CodecError


class Policy(StrEnum):
    """The context that a score gives the model: rows of the stream, overlapping rows, or one document at a time."""

    FLAT = "flat"
    SLIDING = "sliding"
    DOCUMENT = "document"


@dataclass(frozen=True)
class Window:
    """A window: the model reads inputs [start, end); the predictions of inputs [score_from, end) count."""

    start: int
    end: int
    score_from: int


def document_windows(length: int, window: int, stride: int) -> list[Window]:
    """Plan windows of at most `window` inputs, each `stride` after its predecessor; every input is scored exactly once.

    The first window scores all its inputs. Each later window scores its last `stride` inputs (fewer at the end), which
    have at least `window - stride` inputs of context.

    >>> document_windows(10, 6, 3)
    [Window(start=0, end=6, score_from=0), Window(start=3, end=9, score_from=6), Window(start=6, end=10, score_from=9)]

    Raises:
        CodecError: `stride` is not in 1..`window`.
    """
    if not 1 <= stride <= window:
        raise CodecError(f"stride {stride} with windows of {window} tokens; choose 1 to {window}")
    plan: list[Window] = []
    end = 0
    while end < length:
        start = max(0, end - (window - stride))
        score_from, end = end, min(start + window, length)
        plan.append(Window(start, end, score_from))
    return plan


def sliding_windows(tokens: int, window: int, stride: int) -> list[Window]:
    """Plan the challenge's sliding evaluation of a stream; the first token is no target, the last token no input.

    Args:
        tokens: length of the stream.
        window: inputs of a window.
        stride: inputs between windows.

    Raises:
        CodecError: `stride` is not in 1..`window`.
    """
    return document_windows(max(0, tokens - 1), window, stride)


def flat_windows(tokens: int, window: int) -> list[Window]:
    """Plan the challenge's flat evaluation of a stream of `tokens` tokens: full rows side by side, no partial row."""
    rows = max(0, tokens - 1) // window
    return [Window(i * window, (i + 1) * window, i * window) for i in range(rows)]


def first_targets(plan: list[Window], targets: int) -> list[Window]:
    """Cut `plan`, which scores inputs from 0 on without a gap, so that it scores the first `targets` targets only."""
    return [replace(w, end=min(w.end, targets)) for w in plan if w.score_from < targets]
