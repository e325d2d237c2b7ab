"""The audit against cheats: each is refuted, or the verdict says that not all could be checked."""

import json
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece

from codec.errors import MismatchError
from codec.model.tokenizer import Tokenizer
from eval.audit.audit import AS_FAR, REFUTED, audit
from eval.audit.isolation import ROOT
from tests.support import cheats
from tests.support.audit_claims import HEAD, by_name, claim_folder, with_fresh
from trainer.data.shards import write_shard

HONEST = 5.0
"""Bits per byte that a predictor without the text needs at least for the text of `tests.support.cheats`."""


def refuted(found):
    """The predictor was without the text, so its claim of 1 bit per byte is refuted."""
    if found.isolation["text"] != ROOT:
        pytest.skip("no private root on this machine: the audit says so, and that it could not be checked")
    return found.verdict == REFUTED and found.failed == ["score"] and found.honest_bpb > HONEST


@pytest.mark.parametrize("name", cheats.SIMPLE)
def test_the_text_is_nowhere_to_be_found(tmp_path, name):
    try:
        with cheats.simple(name, tmp_path) as folder:
            assert refuted(audit(folder))
    except PermissionError as error:
        pytest.skip(f"only root can put the text there: {error}")


@pytest.mark.parametrize("name", cheats.AGAIN)
def test_nothing_is_kept_for_a_later_audit(tmp_path, name):
    folder = cheats.again(name, tmp_path)
    audit(folder)
    assert refuted(audit(folder))


@pytest.mark.parametrize("name", ["in_the_artifact", "in_names", "in_the_factory"])
def test_a_text_that_the_claim_brings_is_found_out_by_a_fresh_one(tmp_path, name):
    folder = cheats.carried(name, tmp_path)
    found = audit(folder)
    assert found.verdict == AS_FAR
    assert "memorised" in found.unchecked
    found = with_fresh(folder, texts=["Something else in other words, which nobody has told the predictor."])
    assert (found.verdict, found.failed) == (REFUTED, ["memorised"])
    assert found.fresh_bpb > HONEST


def test_names_and_the_factory_count(tmp_path):
    for name in ("in_names", "in_the_factory"):
        folder = cheats.carried(name, tmp_path / name)
        code = (folder / "predictor.py").stat().st_size
        assert audit(folder).artifact_bytes > code + 2 * len(cheats.TEXT)


@pytest.mark.parametrize("name", ["in_modes", "in_times"])
def test_modes_and_times_of_files_hold_nothing(tmp_path, name):
    assert refuted(audit(cheats.carried(name, tmp_path)))


def test_a_fresh_text_must_be_another(tmp_path):
    folder = claim_folder(tmp_path / "c")
    with pytest.raises(MismatchError, match="1 of its documents are in the claim's text"):
        with_fresh(folder, texts=["abcdefgh", "", "another"])


# Tokenizers


def tokenizer(folder, text, **settings):
    """A byte-pair encoding whose normaliser and pieces are the cheat's."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text]),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        byte_fallback=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        **settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t.model").write_bytes(model.getvalue())
    return Tokenizer(model.getvalue())


def rules(folder, changes):
    """A normaliser that replaces each character of `changes`."""
    lines = ("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in pair) for pair in changes.items())
    (folder / "rules.tsv").write_text("\n".join(lines) + "\n")
    return {"normalization_rule_tsv": str(folder / "rules.tsv")}


WORDS = "In the beginning WAS a Text of Small and LARGE letters, Written For nobody"
SMALL = "abcdefghijklmnopqrstuvwxyz"


def flat_claim(folder, its, texts, head="batch = 1", text=""):
    code = HEAD.replace("V = 260", f"V = {its.vocab_size}")
    shown = f"layout = 'flat'\nwindow = 4\n{text}"
    return claim_folder(folder, code, texts, 99.0, shown, tokenizer="t.model", head=head)


@pytest.mark.parametrize(
    "changes",
    [{c: 10 * c for c in SMALL}, dict(zip(SMALL.upper(), SMALL, strict=True))],
    ids=["inflates", "drops_case"],
)
def test_a_tokenizer_that_changes_the_text_is_seen_in_a_flat_stream(tmp_path, changes):
    its = tokenizer(tmp_path / "c", "".join(changes.get(c, c) for c in WORDS), **rules(tmp_path, changes))
    stream = 1 + len(its.encode(WORDS.encode()))
    folder = flat_claim(tmp_path / "c", its, [WORDS], text=f"targets = {(stream - 1) // 4 * 4}")
    found = audit(folder)
    assert found.verdict == REFUTED
    assert found.failed == ["text"]
    assert found.text_bytes <= len(WORDS)
    assert found.edit_bits > 20
    assert found.honest_bpb == pytest.approx((8 * found.coded_bytes + found.edit_bits) / found.text_bytes)


def test_shards_alone_are_not_the_text(tmp_path):
    its = tokenizer(tmp_path / "c", WORDS)
    folder = flat_claim(tmp_path / "c", its, [WORDS], text="targets = 8")
    write_shard(folder / "s.bin", np.concatenate([[1], its.encode(WORDS.encode())]))
    toml = (folder / "claim.toml").read_text().replace("docs.jsonl", "s.bin")
    for layout in ("flat", "documents"):
        lines = toml if layout == "flat" else toml.replace("layout = 'flat'\nwindow = 4\ntargets = 8", "")
        (folder / "claim.toml").write_text(lines)
        found = audit(folder)
        assert found.verdict == AS_FAR
        assert set(found.unchecked) >= {"bytes", "text"}


def test_a_tokenizer_that_holds_the_text_is_counted(tmp_path):
    """Whole sentences are tokens, so that the text is a few of them."""
    pieces = [text.replace(" ", "▁") for text in cheats.TEXTS]
    its = tokenizer(tmp_path / "c", WORDS, user_defined_symbols=pieces, normalization_rule_name="identity")
    assert len(its.encode(cheats.TEXTS[0].encode())) == 1
    code = HEAD.replace("V = 260", f"V = {its.vocab_size}")
    found = audit(claim_folder(tmp_path / "c", code, cheats.TEXTS, tokenizer="t.model"))
    assert found.honest_bpb < 1
    assert found.verdict == AS_FAR
    assert "memorised" in found.unchecked


# Layout and counting


def flat_text(folder, code=HEAD, head="batch = 4", text="", scored=""):
    """A flat claim of bytes, rows of 8."""
    texts = ["abcdefgh ijklmnop qrstuvwx yz abcdef", "ghijklmn opqrstuv wxyz abcdefg hijklm", "nopqrstu vwxyz"]
    return claim_folder(folder, code, texts, 99.0, f"layout = 'flat'\nwindow = 8\n{text}", scored, head=head)


def test_a_flat_stream_of_bytes_is_the_text(tmp_path):
    found = audit(flat_text(tmp_path / "c", text="targets = 88"))
    assert found.failed == []
    assert set(found.unchecked) <= {"memorised", "runs"}
    assert found.text_bytes == 87 - 1  # two of 88 targets begin a document


LATER = """
plain = P.distribution
def distribution(self):
    p = plain(self)
    if self.batches > FIRST and self.position >= SINCE:
        p[:, self.starts[-1]] += 0.5
    return p / p.sum(-1, keepdims=True)
def reset(self, documents):
    self.last, self.position, self.starts = documents, 0, documents
    self.batches = getattr(self, "batches", 0) + 1
P.distribution, P.reset = distribution, reset
"""
"""Uses the first token of the last row of its batch, in batches after the FIRST, from the position SINCE on."""


@pytest.mark.parametrize("first, since", [(0, 0), (1, 0), (1, 6)])
def test_rows_that_use_later_rows_are_seen_in_any_batch_at_any_place(tmp_path, first, since):
    code = HEAD + LATER.replace("FIRST", str(first)).replace("SINCE", str(since))
    found = audit(flat_text(tmp_path / "c", code, text="targets = 88", head="batch = 4"))
    assert found.failed == ["context"]


def test_rows_in_another_order_lack_the_token_before(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "order.json").write_text(json.dumps(list(range(11))[::-1]))
    scored = 'order = "order.json"\nside_bits = 999'
    found = audit(flat_text(tmp_path / "c", head="batch = 1", text="targets = 88", scored=scored))
    assert found.failed == ["context"]


def test_a_tail_that_fills_no_row_is_no_small_thing(tmp_path):
    folder = flat_text(tmp_path / "c")
    toml = folder / "claim.toml"
    toml.write_text(toml.read_text().replace("window = 8", "window = 60"))
    found = audit(folder)
    assert found.failed == ["complete"]
    assert "29 of 89 tokens fill no row of 60" in by_name(found)["complete"].evidence


@pytest.mark.parametrize(
    "text, scored, message",
    [
        ("documents = 999", "", "documents = 999, but .* has 3"),
        ("targets = 800", "", "targets = 800"),
        ("targets = 60", "", "targets = 60"),
        ("targets = 88", "documents = 12", "documents = 12, but the text has 11"),
    ],
)
def test_more_than_there_is_is_not_scored(tmp_path, text, scored, message):
    with pytest.raises(MismatchError, match=message):
        audit(flat_text(tmp_path / "c", text=text, scored=scored))


# What is said


PEEK = """
plain = P.distribution
def peek(self, documents): self.text = documents
def reset(self, documents): self.last, self.position, self.text = documents, 0, None
def distribution(self):
    p = plain(self)
    for n, row in enumerate(p):
        if self.text is not None and self.position < len(self.text[n]):
            target = self.text[n][self.position]
            USE
    return p
P.peek, P.reset, P.distribution = peek, reset, distribution
"""


@pytest.mark.parametrize(
    "use, expected",
    [
        ("row[target] = max(row[target], 0.9)", {"normalised", "target_unseen", "decodes"}),
        ("if self.position > 2: row[target] += 0.3; row /= row.sum()", {"target_unseen", "decodes"}),
    ],
    ids=["more_than_one_at_the_target", "late_use_of_the_target"],
)
def test_a_target_that_was_seen_shows(tmp_path, use, expected):
    found = audit(claim_folder(tmp_path / "c", HEAD + PEEK.replace("USE", use), claimed=1.0))
    assert found.verdict == REFUTED
    assert set(found.failed) == expected | {"score"}


def test_what_was_peeked_at_is_not_carried_to_a_process_without(tmp_path):
    """A predictor that keeps what it saw, in memory and on disk, and uses it when it is not shown the text."""
    code = (
        HEAD
        + """
import pathlib
KEPT = [pathlib.Path(p) / "kept" for p in ("/tmp", ".", "/modules")]
def peek(self, documents):
    for path in KEPT:
        try: np.save(str(path) + ".npy", np.concatenate(documents))
        except OSError: pass
plain = P.distribution
def distribution(self):
    p = plain(self)
    for path in KEPT:
        if pathlib.Path(str(path) + ".npy").exists():
            p[:, np.load(str(path) + ".npy")[min(self.position, 3)]] += 9
    return p / p.sum(-1, keepdims=True)
P.peek, P.distribution = peek, distribution
"""
    )
    found = audit(claim_folder(tmp_path / "c", code, claimed=1.0))
    assert found.verdict == REFUTED
    assert "decodes" in found.failed


def test_another_answer_on_the_second_run(tmp_path):
    """Honest where it is coded, with the text where it should decode it: it cannot tell the one from the other."""
    code = HEAD.replace(
        "def make():\n    return P()", "import os\nP.V = 260\nn = os.urandom(1)[0]\ndef make():\n    return P()"
    )
    code = code.replace("] = 40", "] = 40 + n")
    found = audit(claim_folder(tmp_path / "c", code, texts=[p[0] + p[1] for p in pairwise(["ab", "cd", "ef"])]))
    assert found.failed == ["decodes"]
