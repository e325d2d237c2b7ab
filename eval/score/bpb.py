"""Score a float model in bits per byte, under the challenge's accounting or document by document.

Policies `flat` and `sliding` score a stream as the challenge does: BOS targets count in the loss and for no bytes, and
bytes come from the challenge's table. Policy `document` gives the model each document alone: from [BOS, t1 .. tn] the
model predicts t1 .. tn and then BOS, which is the end. Bytes are the bytes that the tokens stand for. As in an archive,
each token sees the last `window` tokens of its document (sliding-window attention). With a stride, long documents are
cut in windows instead.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.console import Advance, ignore_progress
from codec.errors import CodecError
from codec.model.byte_pairs import AnyTokenizer
from eval.score.batches import Row, Runner, band_nats, row_nats, run_here
from eval.score.streams import documents_of
from eval.score.windows import Policy, Window, document_windows, first_targets, flat_windows, sliding_windows
from trainer.model.build import FloatModel

SLIDING_STRIDE = 64
"""The stride of the challenge's sliding evaluation, in tokens."""


class DocumentScore(NamedTuple):
    """The cost of one document in nats, its scored tokens, and the bytes that these tokens stand for."""

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Score:
    """The cost of a model's predictions of `tokens` targets, and the bytes of text that the targets stand for.

    `decoded_bytes` counts the text's own bytes, never more than the text has. `text_bytes` is the denominator of
    `bpb`: the same number, but under the stream policies the challenge's table where that counts no more.
    """

    nats: float
    tokens: int
    text_bytes: int
    decoded_bytes: int

    @property
    def loss_nats(self) -> float:
        """Return the mean cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        return self.nats / math.log(2) / self.text_bytes


def score(
    model: FloatModel,
    tokenizer: AnyTokenizer,
    stream: NDArray[np.integer],
    policy: Policy,
    stride: int | None = None,
    targets: int | None = None,
    advance: Advance = ignore_progress,
    sizes: NDArray[np.int64] | None = None,
    runner: Runner | None = None,
) -> Score:
    """Score a stream of tokens [N] under a policy.

    Args:
        model: the float model.
        tokenizer: its tokenizer.
        stream: token ids [N], with a BOS before each document.
        policy: which tokens the model sees.
        stride: tokens between windows under `sliding` (default 64) and in long documents (default: sliding-window
            attention, no windows); `flat` takes none.
        targets: stop after so many targets.
        advance: called with the number of targets that have just been scored.
        sizes: bytes of the text that each token stands for [N]; by default the bytes of its piece.
        runner: scores batches in place of the model, as on a cluster; by default the model itself.

    Raises:
        CodecError: there is nothing to score, or the stride does not fit the window.
    """
    sizes = tokenizer.token_lengths[stream] if sizes is None else sizes
    if policy is Policy.DOCUMENT:
        spans = documents_of(stream, sizes, tokenizer.begin)
        found = score_documents(
            model, tokenizer, documents_of(stream, begin=tokenizer.begin), stride, targets, advance, spans, runner
        )
        nats = math.fsum(document.nats for document in found)
        tokens, text_bytes = sum(d.tokens for d in found), sum(d.bytes for d in found)
        result = Score(nats, tokens, text_bytes, text_bytes)
    else:
        plan = stream_plan(policy, len(stream), model.config.window, stride)
        plan = plan if targets is None else first_targets(plan, targets)
        result = score_stream(model, tokenizer, stream, plan, advance, sizes, runner)
    if not result.text_bytes:
        raise CodecError(
            f"nothing to score: {len(stream):,} tokens are {result.tokens:,} targets of {policy} and 0 bytes of text; "
            "pass more text, or --policy document for a text shorter than the model's window"
        )
    return result


def stream_plan(policy: Policy, tokens: int, window: int, stride: int | None) -> list[Window]:
    """Plan the windows of a stream of `tokens` tokens. Raises CodecError for a stride that does not fit."""
    if policy is Policy.SLIDING:
        return sliding_windows(tokens, window, min(SLIDING_STRIDE, window) if stride is None else stride)
    if stride is not None:
        raise CodecError(f"stride {stride} with policy flat, whose rows do not overlap; leave it out or use sliding")
    return flat_windows(tokens, window)


def score_stream(
    model: FloatModel,
    tokenizer: AnyTokenizer,
    stream: NDArray[np.integer],
    plan: Sequence[Window],
    advance: Advance = ignore_progress,
    sizes: NDArray[np.int64] | None = None,
    runner: Runner | None = None,
) -> Score:
    """Score a stream of tokens [N] over windows that score its inputs from 0 on without a gap."""
    count = plan[-1].end if plan else 0
    rows = (Row(stream[w.start : w.end + 1], w.score_from - w.start, 0) for w in plan)
    nats = float(row_nats(runner or run_here(model), model.config, rows, 1, advance)[0])
    before, targets = stream[:count], stream[1 : count + 1]
    by_table = tokenizer.challenge_bytes(before, targets)
    if sizes is None:
        return Score(nats, count, by_table, decoded_bytes(tokenizer, targets))
    own = int(sizes[1 : count + 1].sum())
    # Only where the tokens stand for more bytes than the text has does the text's size replace the challenge's table.
    inflated = own < decoded_bytes(tokenizer, targets)
    return Score(nats, count, min(by_table, own) if inflated else by_table, own)


def score_documents(
    model: FloatModel,
    tokenizer: AnyTokenizer,
    documents: Sequence[NDArray[np.integer]],
    stride: int | None = None,
    targets: int | None = None,
    advance: Advance = ignore_progress,
    sizes: Sequence[NDArray[np.int64]] | None = None,
    runner: Runner | None = None,
) -> list[DocumentScore]:
    """Score each document alone: its tokens and its end.

    Args:
        model: the float model.
        tokenizer: its tokenizer.
        documents: the token ids [n] of each document, without BOS.
        stride: tokens between the windows of a document that is longer than a window (default: sliding-window
            attention, no windows).
        targets: stop after so many targets, if need be inside a document.
        advance: called with the number of targets that have just been scored.
        sizes: for each document, bytes of the text that each token stands for [n]; by default the bytes of its piece.
        runner: as of `score`.

    Raises:
        CodecError: the stride does not fit the window.
    """
    sizes = sizes or [tokenizer.token_lengths[document] for document in documents]
    window = model.config.window
    counts: list[int] = []
    left = targets
    for document in documents:
        if left == 0:
            break
        counts.append(len(document) + 1 if left is None else min(len(document) + 1, left))
        left = None if left is None else left - counts[-1]

    def whole(owner: int) -> Row:
        framed = np.concatenate(([tokenizer.begin], documents[owner], [tokenizer.end]))[: counts[owner] + 1]
        return Row(framed.astype(np.uint32), 0, owner)

    def rows() -> Iterator[Row]:
        for owner, count in enumerate(counts):
            if stride is None and count > window:
                continue
            tokens = whole(owner).tokens
            for w in document_windows(count, window, window if stride is None else stride):
                yield Row(tokens[w.start : w.end + 1], w.score_from - w.start, owner)

    runner = runner or run_here(model)
    nats = row_nats(runner, model.config, rows(), len(counts), advance)
    if stride is None:
        long = [owner for owner, count in enumerate(counts) if count > window]
        nats += band_nats(runner, model.config, [whole(owner) for owner in long], len(counts), advance)
    return [
        DocumentScore(float(cost), count, int(size[:count].sum()))
        for cost, count, size in zip(nats, counts, sizes, strict=False)
    ]


def decoded_bytes(tokenizer: AnyTokenizer, tokens: NDArray[np.integer]) -> int:
    """Sum the bytes that tokens [T] stand for."""
    return int(tokenizer.token_lengths[tokens].sum())
