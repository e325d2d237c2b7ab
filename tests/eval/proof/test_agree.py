"""eval.proof.agree: all ways to run a pack give the same frequencies; on a GPU, over more than two million tokens.

python3 -m pytest -s -m gpu tests/eval/proof/test_agree.py
"""

import json
import sys
from itertools import chain, islice

import numpy as np
import pytest
import torch

import codec
from artifacts.share.packs import find
from codec.backends.cpu.backend import CpuBackend, CpuSlots
from codec.exact.recall import HISTORY
from codec.exact.reference import TorchBackend
from codec.pack.change import with_recall
from codec.text.policy import Adaptation
from eval.proof.agree import Agreement, agree, compare
from tests.codec.exact.test_recall import TABLES
from tests.support.helpers import EVERY_OPTION, RARE_OPTIONS, tiny_blob, tiny_pack
from trainer.data.sample import train_documents, val_documents
from underpar.cli import main

KINDS = [
    ("kernels", "batches"),
    ("kernels", "cached steps"),
    ("kernels", "other batches"),
    ("reference", "other batches"),
]
"""Passes of a processor."""


def some_documents() -> list[bytes]:
    """Of lengths around the window of 32 tokens, one of many windows."""
    lengths = (0, 5, 40, 60, 90, 200, 1500)
    return [document[:n] for document, n in zip(val_documents(), lengths, strict=False)]


def shuffled_documents(count: int, size: int) -> list[bytes]:
    """Documents of `size` bytes and more: sentences of the sample in random order, and every other one word by word."""
    generator, text = np.random.default_rng(0), b"".join(train_documents())
    documents = []
    for n in range(count):
        ending = b". " if n % 2 == 0 else b" "
        parts = text.split(ending)
        chosen, length = [], 0
        while length < size:
            chosen.append(parts[generator.integers(len(parts))])
            length += len(chosen[-1]) + len(ending)
        documents.append(ending.join(chosen))
    return documents


def show(found: Agreement) -> None:
    print(f"\n{found.documents:,} documents, {found.tokens:,} tokens, the longest {found.longest:,}, ", end="")
    print(f"windows of {found.window:,}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    for p in found.passes:
        ran = f"{p.tokens:>10,} tokens {p.differences:>3,} differ {p.seconds:>7.1f} s {p.tokens_per_second:>10,.0f}/s"
        print(f"{p.device:>5} {p.arithmetic:>9}  {p.what:<13} {ran}")


def test_kernels_and_reference_in_any_company():
    found = agree(tiny_pack(), some_documents(), ["cpu"], 300)
    assert [(p.arithmetic, p.what) for p in found.passes] == KINDS
    assert found.differences == 0
    whole, *parts = (p.tokens for p in found.passes)
    assert found.tokens == whole > parts[0] >= 300
    assert len(set(parts)) == 1
    assert found.longest > 10 * found.window


def test_options_without_kernels():
    found = agree(tiny_pack(RARE_OPTIONS), some_documents()[:3], ["cpu"], 10_000)
    assert [p.arithmetic for p in found.passes] == ["reference"] * 3
    assert found.differences == 0


def test_recall():
    pack, documents = codec.open(with_recall(tiny_blob(), TABLES)), some_documents()[:5]
    found, without = agree(pack, documents, ["cpu"], 60, Adaptation.RECALL), agree(pack, documents, ["cpu"], 60)
    assert [(p.arithmetic, p.what) for p in found.passes] == KINDS
    assert found.differences == without.differences == 0
    assert found.intervals != without.intervals


def differing(documents: list[bytes]) -> list[bool]:
    """Of each pass, whether it differs from the first."""
    return [p.differences > 0 for p in agree(tiny_pack(), documents, ["cpu"], 10_000).passes]


def test_wrong_steps_are_found(monkeypatch):
    step = CpuSlots.step

    def wrong(self, slots, tokens, previous, positions, targets):
        found = step(self, slots, tokens, previous, positions, targets)
        found[1, positions == 7] += 1
        return found

    monkeypatch.setattr("codec.backends.agree.agree", lambda *arguments: True)  # which would leave the kernels out
    monkeypatch.setattr(CpuSlots, "step", wrong)
    assert differing(some_documents()) == [False, True, False, False]


def test_what_depends_on_company_is_found(monkeypatch):
    score = CpuBackend.score

    def wrong(self, inputs, targets, memory=None, past=None):
        found = score(self, inputs, targets, memory, past)
        found[0, -1] += len(inputs) == 3
        return found

    monkeypatch.setattr(CpuBackend, "score", wrong)
    assert differing(some_documents()[1:]) == [False, False, True, False]


def test_compare_counts_what_was_run():
    expected = [np.arange(12.0).reshape(3, 4), np.ones((3, 2))]
    found = [part.copy() for part in expected]
    assert compare(found, expected) == (6, 0, None)
    found[0][:, 1] = np.nan
    found[0][2] += 1  # bits are no integers
    found[1][1, 1] = 2
    assert compare(found, expected) == (5, 1, (1, 1))


def test_the_command(tmp_path, monkeypatch, capsys):
    pack, text = tmp_path / "tiny.pack", tmp_path / "text.txt"
    pack.write_bytes(tiny_blob(EVERY_OPTION))
    text.write_bytes(some_documents()[-1])
    command = ["underpar", "agree", str(pack), "--docs", str(text), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differences"] == 0
    assert len(said["passes"]) == len(KINDS)
    score = TorchBackend.score
    monkeypatch.setattr("codec.backends.agree.agree", lambda *arguments: True)
    monkeypatch.setattr(TorchBackend, "score", lambda *arguments, **past: score(*arguments, **past) + 1)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["differences"] == said["tokens"]
    assert "tokens differ, first in document 0 from token 0 on" in captured.err
    monkeypatch.setattr(sys, "argv", [*command, "--devices", "cpu,tpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_million_tokens_on_a_processor_and_a_gpu():
    """The pack that ships on all text that ships, and on documents of 30 windows and more."""
    documents = [*chain(train_documents(), val_documents()), *shuffled_documents(12, 40_000)]
    found = agree(codec.open(find("small").read_bytes()), documents, ["cuda", "cpu"], 100_000)
    show(found)
    assert {(p.device, p.arithmetic) for p in found.passes} == {
        (device, arithmetic) for device in ("cpu", "cuda") for arithmetic in ("kernels", "reference")
    }
    whole = {(p.device, p.what) for p in found.passes if p.tokens == found.tokens > 2_000_000}
    assert whole == {("cpu", "batches"), *(("cuda", what) for what in ("batches", "cached steps", "other batches"))}
    assert found.longest > 10 * found.window
    assert found.differences == 0
    assert len(set(found.payloads.values())) == len(set(found.intervals.values())) == 1


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recall_on_a_processor_and_a_gpu():
    """Some documents outgrow what is looked back at."""
    documents = [*islice(val_documents(), 200), *shuffled_documents(4, 40_000)]
    found = agree(codec.open(find("small").read_bytes()), documents, ["cuda", "cpu"], 10_000, Adaptation.RECALL)
    show(found)
    assert {(p.device, p.arithmetic) for p in found.passes} == {
        (device, arithmetic) for device in ("cpu", "cuda") for arithmetic in ("kernels", "reference")
    }
    assert found.longest > HISTORY
    assert found.differences == 0
    assert len(set(found.payloads.values())) == len(set(found.intervals.values())) == 1
