"""trainer.fit.recall: the entries that a plain loop learns, and text that they make cheaper."""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import codec
from codec.errors import MismatchError
from codec.exact.recall import SHAPES
from codec.model.tokenizer import BOS
from tests.codec.exact.test_recall import textbook, textbook_keys
from tests.support.helpers import PLAIN, tiny_blob, tiny_pack
from trainer.data.sample import train_documents
from trainer.fit.recall import fit_recall
from underpar.cli import main


def plain_loop(documents: list[bytes]) -> tuple[dict[str, np.ndarray], float, float]:
    """Tables in bits, and bits without them and while they are learned."""
    pack = tiny_pack(PLAIN)
    model = pack.exact()
    learned = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    squares = {name: np.ones(shape) for name, shape in SHAPES.items()}
    without = with_recall = 0.0
    for document in documents:
        stream = np.array([BOS, *pack.tokenizer.encode(document), BOS])
        hidden, steps = (part[0] for part in model.forward(torch.from_numpy(stream[None, :-1])))
        keys, levels = textbook_keys((hidden * steps).numpy()), model.levels(hidden, steps).numpy()
        for t, here in enumerate(levels):
            cells = textbook(stream[:-1], keys, t, here, 8192)
            p = np.exp2(here / 4096)
            without -= np.log2(p[stream[t + 1]] / p.sum())
            for token, entries in cells.items():
                p[token] *= np.exp2(sum(learned[name][row, column] for name, row, column in entries))
            p /= p.sum()
            with_recall -= np.log2(p[stream[t + 1]])
            gradients: dict = {}
            for token, entries in cells.items():
                for entry in entries:
                    gradients[entry] = gradients.get(entry, 0.0) + (token == stream[t + 1]) - p[token]
            for (name, row, column), g in gradients.items():
                squares[name][row, column] += g * g
                learned[name][row, column] += 0.1 * g / np.sqrt(squares[name][row, column])
    return learned, without, with_recall


def test_it_learns_what_a_plain_loop_learns():
    documents = [b"the cat and the hat and the cat", b"and so on and so on and on"]  # shorter than the window
    learned, without, with_recall = plain_loop(documents)
    found = fit_recall(tiny_pack(PLAIN), documents, 10_000)
    assert found.tokens == sum(len(tiny_pack(PLAIN).tokenizer.encode(d)) + 1 for d in documents)
    assert found.text_bytes == sum(map(len, documents))
    assert found.bits_without == pytest.approx(without, rel=1e-4)
    assert found.bits_with == pytest.approx(with_recall, rel=1e-4)
    for name, table in learned.items():
        assert np.abs(table).max() > 0.1
        assert np.abs(np.array(getattr(found.recall, name)) - 16 * table).max() < 0.51


def test_it_ends_when_it_has_seen_enough():
    documents = list(islice(train_documents(), 3))
    assert fit_recall(tiny_pack(PLAIN), documents, 1) == fit_recall(tiny_pack(PLAIN), documents[:1], 10**6)


def test_a_pack_of_weights_alone():
    with pytest.raises(MismatchError, match="weights only"):
        fit_recall(codec.open(codec.compress({"w": torch.ones(3)})), [], 1)


def test_from_the_command_to_a_proof(tmp_path, monkeypatch, capsys):
    plain, fitted, text = (str(tmp_path / name) for name in ("plain.pack", "fitted.pack", "text.txt"))
    Path(plain).write_bytes(tiny_blob(PLAIN))
    Path(text).write_bytes(b"again and again and again")

    def told(*words: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["underpar", *words, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out)

    found = told("recall", plain, "-o", fitted, "--docs", text)
    assert found["pack_bytes"] == Path(fitted).stat().st_size > found["pack_bytes_before"]
    assert found["bpb_while_learning"] < found["bpb_without"]
    pack = codec.open(Path(fitted).read_bytes())
    for name, tensor in tiny_pack(PLAIN).state_dict().items():
        assert torch.equal(tensor, pack.state_dict()[name])
    proof = told("prove", fitted, "--docs", text, "--adapt", "recall")
    assert proof["ok"]
    assert proof["adaptation"] == "recall"
    assert proof["bpb_ideal"] < proof["bpb_unadapted"] < 1.01 * proof["bpb_exact"]
    archive, again = str(tmp_path / "text.upz"), str(tmp_path / "again.txt")
    told("encode", text, "-o", archive, "--model", fitted, "--adapt", "recall", "--independent")
    assert told("inspect", archive)["adaptation"] == "recall"
    told("decode", archive, "-o", again, "--model", fitted)
    assert Path(again).read_bytes() == Path(text).read_bytes()
