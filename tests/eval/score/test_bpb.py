"""eval.score.bpb: against slow loops that share no code with it, and the challenge's own figure for its own
artifact.
"""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import eval.score.batches
from codec.errors import CodecError
from codec.model.config import ModelConfig
from codec.model.tokenizer import BOS
from eval.score.bpb import Score, decoded_bytes, score, score_documents
from eval.score.streams import documents_of, measured_stream
from eval.score.windows import Policy
from tests.support.helpers import lossless_tokenizer, shared
from trainer.data.sample import sp1024
from trainer.model.gpt import GPT
from underpar.cli import main

WINDOW = 24
TEXTS = (
    b"The end of a document is coded as the next document's beginning.",
    b"",
    "Zürich — naïve “quotes”, 東京 and \U0001f600".encode(),
    b"One sentence after another, until the text is longer than the window of the model. " * 3,
)


@pytest.fixture(scope="module")
def tokenizer():
    return sp1024()


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(vocab_size=1024, window=WINDOW, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)
    torch.manual_seed(5)
    gpt = GPT(config)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.normal_(std=0.5)
    return gpt.eval()


@pytest.fixture(scope="module")
def documents(tokenizer):
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def stream(documents):
    return np.concatenate([np.concatenate(([BOS], d)) for d in documents]).astype(np.uint16)


def next_token_nats(model, context, target):
    """The cost of one target after a context, the model run for it alone."""
    with torch.inference_mode():
        logits = model(torch.tensor([context]))[0, -1].double()
    return float(logits.logsumexp(0) - logits[target])


def slow_bytes(tokenizer, tokens):
    """The challenge's accounting as its rules read, with SentencePiece asked about each token."""
    p = tokenizer._processor

    def is_boundary(token):
        return p.IsControl(token) or p.IsUnknown(token) or p.IsUnused(token)

    total = 0
    for previous, token in pairwise(tokens):
        if is_boundary(token):
            continue
        if p.IsByte(token):
            total += 1
            continue
        piece = p.IdToPiece(token)
        total += len(piece[1:].encode()) + (not is_boundary(previous)) if piece[0] == "▁" else len(piece.encode())
    return total


def test_flat_is_the_challenges_accounting(model, tokenizer, stream):
    tokens = stream.tolist()
    usable = (len(tokens) - 1) // WINDOW * WINDOW
    assert 0 < usable < len(tokens) - 1, "a tail must be dropped for this test to say something"
    nats = 0.0
    for i in range(usable):
        row = i // WINDOW * WINDOW
        nats += next_token_nats(model, tokens[row : i + 1], tokens[i + 1])
    found = score(model, tokenizer, stream, Policy.FLAT)
    assert found.tokens == usable
    assert found.text_bytes == slow_bytes(tokenizer, tokens[: usable + 1])
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.loss_nats == found.nats / usable
    assert found.bpb == pytest.approx(found.loss_nats / math.log(2) * usable / found.text_bytes)


@pytest.mark.parametrize("stride", [1, 5, WINDOW])
def test_sliding_gives_every_target_its_longest_context(model, tokenizer, stream, stride):
    tokens = stream.tolist()
    nats = 0.0
    for i in range(len(tokens) - 1):
        window = 0 if i < WINDOW else math.ceil((i + 1 - WINDOW) / stride)  # the first window that reaches input i
        nats += next_token_nats(model, tokens[window * stride : i + 1], tokens[i + 1])
    found = score(model, tokenizer, stream, Policy.SLIDING, stride)
    assert (found.tokens, found.text_bytes) == (len(tokens) - 1, slow_bytes(tokenizer, tokens))
    assert found.nats == pytest.approx(nats, rel=1e-6)


def banded_nats(model, tokens, targets):
    """The cost of targets [T] after tokens [T]: the whole document at once, keys beyond the window masked."""
    whole = GPT(replace(model.config, window=max(2, len(tokens))))
    whole.load_state_dict(model.state_dict())

    def attend(q, k, v, mask):
        causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        near = causal & ~causal.tril(-WINDOW)
        scores = (q @ k.repeat_interleave(2, 1).mT / q.shape[3] ** 0.5).masked_fill(~near, -torch.inf)
        return scores.softmax(-1) @ v.repeat_interleave(2, 1)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr("trainer.model.gpt.attend", attend)
        losses = torch.nn.functional.cross_entropy(whole(torch.tensor([tokens]))[0].double(), torch.tensor(targets))
    return float(losses) * len(targets)


@pytest.mark.parametrize("side_by_side", [1, 5])
def test_documents_are_bands(model, tokenizer, side_by_side, monkeypatch):
    text = b" ".join(TEXTS)
    whole = tokenizer.encode(text)
    documents = [whole[: n - 1] for n in (5 * WINDOW + 1, WINDOW, 2 * WINDOW, WINDOW + 1, 1, 2 * WINDOW + 3)]
    monkeypatch.setattr(eval.score.batches, "MAX_LOGITS", side_by_side * WINDOW * 1024)
    for document, got in zip(documents, score_documents(model, tokenizer, documents), strict=True):
        framed = [BOS, *document.tolist(), BOS]
        assert got.tokens == len(framed) - 1
        assert got.nats == pytest.approx(banded_nats(model, framed[:-1], framed[1:]), rel=1e-5)


@pytest.mark.parametrize("stride", [WINDOW // 2, 7, WINDOW])
def test_each_document_is_scored_alone_token_by_token(model, tokenizer, documents, stride):
    found = score_documents(model, tokenizer, documents, stride)
    for text, document, got in zip(TEXTS, documents, found, strict=True):
        context, nats, start = [BOS], 0.0, 0
        for target in [*document.tolist(), BOS]:
            if len(context) - start > WINDOW:
                start += stride
            nats += next_token_nats(model, context[start:], target)
            context.append(target)
        assert got.nats == pytest.approx(nats, rel=1e-6)
        assert got.tokens == len(document) + 1
        assert got.bytes == len(tokenizer.decode(tokenizer.encode(text)))


def test_document_policy_sums_the_documents(model, tokenizer, documents, stream):
    parts = score_documents(model, tokenizer, documents)
    total = score(model, tokenizer, stream, Policy.DOCUMENT)
    assert total.nats == pytest.approx(sum(part.nats for part in parts))
    assert total.tokens == len(stream) == sum(part.tokens for part in parts)
    assert total.text_bytes == total.decoded_bytes == sum(part.bytes for part in parts)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("targets", [1, 30, WINDOW * 2, 70])
def test_a_score_can_stop_after_some_targets(model, tokenizer, stream, policy, targets):
    told = []
    found = score(model, tokenizer, stream, policy, targets=targets, advance=told.append)
    assert found.tokens == targets == sum(told)
    longer = score(model, tokenizer, stream, policy, targets=targets + 1)
    assert 0 < longer.nats - found.nats < 40


def test_stopping_inside_a_document_counts_its_first_tokens(model, tokenizer, documents):
    found = score_documents(model, tokenizer, documents, targets=len(documents[0]) + 4)
    assert [d.tokens for d in found] == [len(documents[0]) + 1, 1, 2]
    assert found[2].bytes == decoded_bytes(tokenizer, documents[2][:2])


def test_batches_do_not_change_a_score(model, tokenizer, stream, monkeypatch):
    whole = score(model, tokenizer, stream, Policy.DOCUMENT)
    monkeypatch.setattr(eval.score.batches, "MAX_LOGITS", 1)
    alone = score(model, tokenizer, stream, Policy.DOCUMENT)
    assert alone.nats == pytest.approx(whole.nats, rel=1e-6)
    assert (alone.tokens, alone.text_bytes) == (whole.tokens, whole.text_bytes)


def test_the_challenges_table_differs_from_the_bytes_where_a_document_begins_with_a_space(tokenizer):
    space = next(i for i, piece in enumerate(tokenizer.token_bytes) if piece == b" the")
    before, targets = np.array([BOS, space]), np.array([space, space])
    assert tokenizer.challenge_bytes(before, targets) == 3 + 4
    assert decoded_bytes(tokenizer, targets) == 4 + 4


def test_the_bytes_of_normal_text_are_the_tables(tokenizer, stream):
    assert tokenizer.challenge_bytes(stream[:-1], stream[1:]) == decoded_bytes(tokenizer, stream[1:])


def test_nothing_to_score_is_an_error(model, tokenizer):
    short = np.array([BOS, 300, 301], np.uint16)
    with pytest.raises(CodecError, match="0 targets of flat"):
        score(model, tokenizer, short, Policy.FLAT)
    with pytest.raises(CodecError, match="2 targets of document and 0 bytes"):
        score(model, tokenizer, np.array([BOS, BOS], np.uint16), Policy.DOCUMENT)
    assert score(model, tokenizer, short, Policy.DOCUMENT).tokens == 3


@pytest.mark.parametrize("policy, stride", [(Policy.FLAT, 8), (Policy.SLIDING, 0), (Policy.DOCUMENT, WINDOW + 1)])
def test_a_stride_that_does_not_fit_is_an_error(model, tokenizer, stream, policy, stride):
    with pytest.raises(CodecError, match=f"stride {stride} "):
        score(model, tokenizer, stream, policy, stride)


def test_bits_per_byte_of_a_known_loss():
    assert Score(nats=8 * math.log(2), tokens=4, text_bytes=2, decoded_bytes=2).bpb == pytest.approx(4.0)


def test_documents_of_a_stream(stream, documents):
    assert [d.tolist() for d in documents_of(stream)] == [d.tolist() for d in documents]


@pytest.mark.long
def test_the_challenges_own_artifact_gives_its_own_figure(monkeypatch, capsys):
    artifact = shared("data", "peer", "baseline_9x512_sp1024.int8.ptz")
    shard = shared("data", "val", "fineweb_val_head_sp1024.bin.xz")
    model = shared("data", "tokenizers", "fineweb_1024_bpe.model")
    words = f"bpb {artifact} --docs {shard} --policy flat --targets 65536 --tokenizer {model} --json"
    monkeypatch.setattr("sys.argv", ["underpar", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)
    assert (result["tokens"], result["text_bytes"], result["policy"]) == (65_536, 159_910, "flat")
    assert result["bpb"] == pytest.approx(1.509407, abs=1e-5)
    assert result["loss_nats"] == pytest.approx(2.552862, abs=1e-5)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize("text", [bytes(range(0x80, 0x100)) * 3, "\ufdfa".encode() * 30], ids=["no_utf8", "normalised"])
def test_a_text_is_not_divided_by_bytes_that_it_has_not(model, tmp_path, policy, text):
    (tmp_path / "t.txt").write_bytes(text)
    tokenizer = sp1024() if "\ufdfa" in text.decode(errors="ignore") else lossless_tokenizer()
    tokens, sizes = measured_stream(tmp_path / "t.txt", tokenizer)
    found = score(model, tokenizer, tokens, policy, sizes=sizes)
    count = found.tokens if policy is not Policy.DOCUMENT else len(tokens)
    assert found.text_bytes == found.decoded_bytes == sizes[1 : count + 1].sum() <= len(text)
    assert decoded_bytes(tokenizer, tokens) > 2 * len(text)
    assert found.bpb == found.nats / math.log(2) / found.text_bytes
