"""eval.audit.audit: claims from end to end, and the command."""

import json
import math
import re
import sys
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest

import eval.audit.audit
from eval.audit import conditions
from eval.audit.audit import AS_FAR, HOLDS, REFUTED, audit
from eval.audit.claims import load_claim
from eval.audit.isolation import ROOT
from eval.audit.sandbox import Limits
from eval.cli.audit import HELP
from tests.support.audit_claims import FRESH, HEAD, TEXTS, assert_holds, claim_folder, with_fresh
from tests.support.helpers import ROOT as ROOT_FOLDER
from trainer.data.sample import sp1024
from trainer.data.shards import write_shard
from underpar.cli import main

FLAT = "layout = 'flat'\nwindow = 8\ntargets = 64\n"


def by_name(found):
    return {condition.name: condition for condition in found.conditions}


def test_an_honest_claim_holds_to_the_bit(tmp_path):
    """The expected code length, computed here from the rule of the predictor."""
    bits = 0.0
    for text in TEXTS:
        stream = [1, *(b + 4 for b in text.encode()), 1]
        for last, token in pairwise(stream):
            bits -= math.log2((40 if token == (last + 1) % 260 else 1) / 299)
    size = sum(map(len, TEXTS))
    found = with_fresh(claim_folder(tmp_path / "c", claimed=bits / size))
    assert_holds(found)
    assert found.verdict == (HOLDS if found.isolation["text"] == ROOT else AS_FAR)
    assert found.text_bytes == size
    assert found.scored_bpb == pytest.approx(bits / size, rel=1e-12)
    assert found.ideal_bpb == pytest.approx(bits / size, rel=1e-4)
    assert found.honest_bpb == 8 * found.coded_bytes / size
    assert 0 <= 8 * found.coded_bytes - found.ideal_bpb * size <= 16
    assert set(found.isolation) >= {"network", "text"}


def test_a_claim_below_what_was_coded_is_refuted_for_that_alone(tmp_path):
    honest = audit(claim_folder(tmp_path / "a")).honest_bpb
    found = audit(claim_folder(tmp_path / "b", claimed=honest - 64 / sum(map(len, TEXTS)) - 0.001))
    assert (found.verdict, found.failed) == (REFUTED, ["score"])


@pytest.mark.parametrize("fresh", [False, True])
def test_a_claim_that_carries_the_text_is_refuted(tmp_path, fresh):
    folder = claim_folder(tmp_path / "c", head='files = ["weights.bin"]')
    (folder / "weights.bin").write_bytes((folder / "docs.jsonl").read_bytes())
    found = with_fresh(folder) if fresh else audit(folder)
    assert (found.verdict, found.failed) == (REFUTED, ["memorised"])
    assert by_name(found)["memorised"].evidence == "weights.bin among the claim's files is the scored text itself"


def test_the_page_of_the_audit_names_the_conditions_that_are_printed(tmp_path):
    page = (ROOT_FOLDER / "docs" / "audit.md").read_text()
    table = page.partition("## Conditions")[2].partition("## The museum")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(by_name(audit(claim_folder(tmp_path / "c"))))
    status = "0 if the claim holds, 1 if {} is refuted or a condition could not be checked, 2 if {} cannot be read"
    for text, subject in ((page, "it"), (HELP, "the claim")):
        assert status.format(subject, subject) in " ".join(text.split())


def test_batches_do_not_change_what_is_coded(tmp_path):
    sizes = [audit(claim_folder(tmp_path / str(n), head=f"batch = {n}")).ideal_bpb for n in (1, 2, 5)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-12) == pytest.approx(sizes[2], rel=1e-12)


def test_a_predictor_that_does_not_say_the_same_twice_does_not_decode(tmp_path):
    code = HEAD.replace("= 40", "= 40 + __import__('os').urandom(1)[0] * 10")
    found = audit(claim_folder(tmp_path / "c", code))
    assert found.failed == ["decodes"]
    assert "goes wrong at document" in by_name(found)["decodes"].evidence


@pytest.mark.parametrize("bad", ["p[0, 0] = float('nan')", "p[0, 0] = -1e-3", "p *= 1.001", "p[0, 3] = float('inf')"])
def test_what_is_no_distribution_is_found_where_it_begins(tmp_path, bad):
    code = HEAD.replace(
        "return p / p.sum(-1, keepdims=True)", "p /= p.sum(-1, keepdims=True)\n        BAD\n        return p"
    )
    found = audit(claim_folder(tmp_path / "c", code.replace("BAD", f"if self.position == 3: {bad}")))
    assert found.failed == ["normalised"]
    assert "at document 0, token 3" in by_name(found)["normalised"].evidence


def test_a_predictor_that_fails_is_a_verdict(tmp_path):
    found = audit(
        claim_folder(tmp_path / "c", HEAD.replace("p = np", "raise ValueError('no weights')\n        p = np"))
    )
    assert found.verdict == REFUTED
    assert found.honest_bpb is None
    assert by_name(found)["runs"].evidence.startswith("ValueError: no weights")
    slow = HEAD.replace("p = np", "__import__('time').sleep(30)\n        p = np")
    found = audit(claim_folder(tmp_path / "d", slow), Limits(call_seconds=1))
    assert "used up its time" in by_name(found)["runs"].evidence


def test_lengths_that_a_decoder_must_be_told_are_charged(tmp_path):
    found = audit(claim_folder(tmp_path / "a", scored='ends = "given"'))
    assert found.failed == ["lengths"]
    assert found.side_bits == pytest.approx(conditions.lengths_bits(load_claim(tmp_path / "a")))
    assert found.honest_bpb == pytest.approx((8 * found.coded_bytes + found.side_bits) / found.text_bytes)
    paid = with_fresh(claim_folder(tmp_path / "b", scored=f'ends = "given"\nside_bits = {found.side_bits + 1}'))
    assert_holds(paid)


def test_an_order_that_is_charged_holds(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "order.json").write_text("[4, 2, 0, 1, 3]")
    found = audit(claim_folder(tmp_path / "c", scored='order = "order.json"'))
    assert found.failed == ["order"]
    assert found.side_bits == pytest.approx(math.log2(120))
    claim_folder(tmp_path / "c", scored='order = "order.json"\nside_bits = 7')
    assert_holds(with_fresh(tmp_path / "c"))


def test_tokens_cannot_inflate_the_denominator(tmp_path):
    """Own tokens with a run of spaces are canonically the text, but the bytes are those of the text."""
    folder = claim_folder(tmp_path / "c", texts=["ab cd"], scored='tokens = "tokens.bin"')
    write_shard(folder / "tokens.bin", np.array([1, *(b + 4 for b in b"ab          cd")]))
    found = audit(folder)
    assert found.text_bytes == 5
    assert by_name(found)["text"].ok


def test_text_that_is_lost_is_paid_for(tmp_path):
    folder = claim_folder(tmp_path / "c", texts=["Every Word Has A Capital", "so not this"], scored='tokens = "t.bin"')
    tokens = [1, *(b + 4 for b in b"every word has a capital"), 1, *(b + 4 for b in b"so not this")]
    write_shard(folder / "t.bin", np.array(tokens))
    found = audit(folder)
    assert "text" in found.failed
    assert "1 of 2 documents cannot be had back, first document 0: case is lost" in by_name(found)["text"].evidence
    assert found.edit_bits > 20
    assert found.honest_bpb == pytest.approx((8 * found.coded_bytes + found.edit_bits) / found.text_bytes)


def test_a_part_of_the_set_is_not_the_set(tmp_path):
    found = audit(claim_folder(tmp_path / "c", scored="documents = 2"))
    assert found.failed == ["complete"]
    assert "2 of 5 documents" in by_name(found)["complete"].evidence
    about_two = with_fresh(claim_folder(tmp_path / "d", text="documents = 2"), margin=2.0)
    assert_holds(about_two)
    assert "of a part of the file (documents = 2)" in by_name(about_two)["complete"].evidence


def flat_folder(folder, code, head="batch = 4"):
    claim_folder(folder, code.replace("V = 260", "V = 1024").replace("260", "1024"), tokenizer="t.model", head=head)
    (folder / "t.model").write_bytes(sp1024().model)
    generator = np.random.default_rng(0)
    write_shard(folder / "docs.bin", generator.integers(4, 300, 70))
    toml = (folder / "claim.toml").read_text().replace('"docs.jsonl"\n', f'"docs.bin"\n{FLAT}').replace("9.0", "99.0")
    (folder / "claim.toml").write_text(toml)
    return folder


def test_rows_of_a_flat_stream(tmp_path):
    claim = load_claim(flat_folder(tmp_path / "c", HEAD))
    stream = np.concatenate([[claim.rows[0].start], *(row.targets for row in claim.rows)])
    assert len(claim.rows) == 69 // 8
    assert [row.start for row in claim.rows] == stream[:-1:8].tolist()
    assert claim.left_out == 0  # targets says that the rest is not meant
    found = audit(tmp_path / "c")
    assert found.verdict == AS_FAR
    assert set(found.unchecked) >= {"bytes", "text", "memorised"}  # only a shard is given
    assert found.tokens == 64


def test_rows_that_see_later_rows_cannot_be_decoded_one_after_another(tmp_path):
    """In a batch all rows' first tokens are there at once; a stream has them only when the rows before are done."""
    code = HEAD.replace("return p", "p[:, self.last[-1]] += 1\n        return p")
    found = audit(flat_folder(tmp_path / "c", code))
    assert found.failed == ["context"]
    assert audit(flat_folder(tmp_path / "d", code, head="batch = 1")).verdict == AS_FAR


def test_a_look_at_earlier_rows_is_allowed(tmp_path):
    code = HEAD.replace("return p", "p[:, self.last[0]] += 1\n        return p")
    assert audit(flat_folder(tmp_path / "c", code)).verdict == AS_FAR


def test_the_text_cannot_be_read_from_where_it_lies(tmp_path):
    """A predictor that opens the file it is scored on: it is not there, or is empty."""
    folder = tmp_path / "c"
    path = str(folder / "docs.jsonl")
    code = HEAD.replace("p = np", f"if not open({path!r}).read(): raise PermissionError('empty')\n        p = np", 1)
    found = audit(claim_folder(folder, code))
    assert by_name(found)["runs"].ok is False
    assert by_name(found)["runs"].evidence.startswith(("FileNotFoundError", "PermissionError"))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main_with(arguments)
    return ended.value.code, capsys.readouterr()


def main_with(arguments):
    with patch.object(sys, "argv", ["underpar", *map(str, arguments)]):
        main()


def test_the_command(tmp_path, capsys):
    claim_folder(tmp_path / "good")
    code, out = run(capsys, "audit", tmp_path / "good")
    assert code == 1
    assert "good: the claim holds as far as checked" in out.out
    assert out.out.index("unchecked") < out.out.index(" ok ")
    assert "memorised" in out.err
    (tmp_path / "fresh.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in FRESH))
    fresh = ("--fresh", tmp_path / "fresh.jsonl", "--margin", "1")
    code, out = run(capsys, "audit", tmp_path / "good", *fresh, "--json")
    values = json.loads(out.out.splitlines()[-1])
    if values["isolation"]["text"] != ROOT:
        pytest.skip("no private root on this machine")
    assert code == 0
    assert {"verdict", "claimed_bpb", "honest_bpb", "conditions"} <= set(values)
    assert values["verdict"] == "holds"
    assert all(set(condition) == {"name", "ok", "evidence"} for condition in values["conditions"])
    claim_folder(tmp_path / "bad", claimed=0.1)
    code, out = run(capsys, "audit", tmp_path / "bad" / "claim.toml")
    assert code == 1
    assert "bad: the claim is refuted" in out.out
    assert out.out.index("fails") < out.out.index("ok")
    assert "refuted: score" in out.err
    code, out = run(capsys, "audit", tmp_path / "none")
    assert code == 2


def test_the_page_of_a_claim_that_did_not_run(tmp_path, capsys):
    claim_folder(tmp_path / "c", "1 / 0")
    code, out = run(capsys, "audit", tmp_path / "c")
    assert code == 1
    assert "ZeroDivisionError" in out.out
    assert eval.audit.audit.REFUTED in out.out
