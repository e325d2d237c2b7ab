"""eval.audit.claims: what cannot be read says why; what can, is what the files say."""

import numpy as np
import pytest

from codec.errors import CodecError, FormatError, MismatchError
from eval.audit.claims import load_claim
from eval.audit.rows import Bytes260
from tests.support.audit_claims import claim_folder
from trainer.data.shards import write_shard


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("claimed_bpb = 9.0", "", "claimed_bpb is missing"),
        ("claimed_bpb = 9.0", "claimed_bpb = nan", "finite"),
        ("claimed_bpb = 9.0", 'claimed_bpb = "low"', "wrong type"),
        ("claimed_bpb = 9.0", "claimed_bpb = = 1", "not TOML"),
        (
            "claimed_bpb = 9.0",
            "claimed_bpb = 9.0\nbpb = 1",
            "unknown key 'bpb' above the tables, known are claimed_bpb, .*help",
        ),
        ("[text]", "[text]\nlayuot = 1", r"unknown key 'layuot' in \[text\], known are path, documents, layout"),
        ("[text]", "[text]\ndocuments = 'all'", r"documents in \[text\] is 'all', of the wrong type"),
        ("path =", "# path =", r"path is missing in \[text\]"),
        ("predictor.py:make", "other.py:make", "there is no file"),
        ('"byte260"', '"no.model"', "tokenizer"),
        ("docs.jsonl", "none.jsonl", "none.jsonl"),
        ("[text]", "[txt]", "unknown key 'txt'"),
        ("[scored]", '[scored]\norder = "none.json"', "none.json"),
        ("[scored]", '[scored]\norder = "bad.json"', "shape"),
        ("[scored]", '[scored]\norder = "twice.json"', "once"),
        ("[scored]", '[scored]\nbyte_table = "bad.json"', "expected 260 finite numbers"),
        ("[scored]", '[scored]\nbyte_table = "docs.jsonl"', "not a JSON list"),
        ("[scored]", '[scored]\nends = "lost"', "expected one of"),
        ("[scored]", '[scored]\ntokens = "two.bin"', "2 documents of tokens for 5 of text"),
        ("[text]", "batch = 0\n[text]", "above 0"),
        ("[text]", "files = [3]\n[text]", "no list of names"),
        ("[text]", "text = 3\n", "wrong type"),
    ],
)
def test_a_claim_that_cannot_be_read_says_why(tmp_path, old, new, message):
    folder = claim_folder(tmp_path / "c")
    (folder / "bad.json").write_text("[1, 2]")
    (folder / "twice.json").write_text("[0, 1, 2, 3, 3]")
    write_shard(folder / "two.bin", np.array([1, 7, 1, 8]))
    toml = (folder / "claim.toml").read_text()
    assert old in toml
    (folder / "claim.toml").write_text(toml.replace(old, new, 1))
    with pytest.raises(CodecError, match=message):
        load_claim(folder)


def test_a_claim_without_text_is_refused(tmp_path):
    with pytest.raises(FormatError, match="no token to score"):
        load_claim(claim_folder(tmp_path / "c", texts=[], scored='ends = "given"'))
    with pytest.raises(FormatError, match="claim"):
        load_claim(tmp_path / "none")


@pytest.mark.parametrize(
    "files, message",
    [
        (["submission.json", "evaluate.py", "model.pack"], "is a submission.* `python .*evaluate.py` .*--evaluate`"),
        (["model.pack"], "is a run folder: `underpar prove .*model.pack --docs TEXT`"),
        (["notes.txt"], "pass a folder with one, or a claim.toml; `underpar audit --help`"),
    ],
)
def test_a_folder_without_a_claim_says_what_checks_it(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(FormatError, match=f"no claim.toml is in this folder; .*{message}"):
        load_claim(tmp_path)


def test_a_claim_is_what_its_files_say(tmp_path):
    folder = claim_folder(tmp_path / "one", texts=["ab", "", "c"], head="batch = 7", scored='order = "longest_first"')
    claim = load_claim(folder / "claim.toml")
    assert (claim.name, claim.claimed_bpb, claim.batch, claim.scored, claim.flat) == ("one", 9.0, 7, 3, False)
    assert [row.targets.tolist() for row in claim.rows] == [[101, 102, 1], [1], [103, 1]]
    assert claim.order.tolist() == [0, 2, 1]
    assert [claim.decoded(n) for n in range(3)] == claim.documents == [b"ab", b"", b"c"]
    assert [claim.real_bytes(n) for n in range(3)] == [2, 0, 1]
    assert claim.program.factory == "predictor.py:make"
    assert folder / "docs.jsonl" in claim.program.hidden


def test_a_table_of_bytes_counts_what_was_scored(tmp_path):
    folder = claim_folder(tmp_path / "one", texts=["ab", "c"], scored='byte_table = "b.json"\ndocuments = 1')
    (folder / "b.json").write_text(str([0] * 4 + [2] * 256))
    assert load_claim(folder).counted_bytes == 4


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    folder = claim_folder(tmp_path / "one", texts=["ab"], scored='tokens = "t.bin"')
    write_shard(folder / "t.bin", np.array([1, 260]))
    with pytest.raises(MismatchError, match="token 260, but the tokenizer has 0 to 259"):
        load_claim(folder)


def test_bytes260_is_the_challenges():
    tokens = Bytes260().encode(b"\x00a\xff")
    assert tokens.tolist() == [4, 101, 259]
    assert b"".join(Bytes260().token_bytes[t] for t in tokens) == b"\x00a\xff"
    assert len(Bytes260().token_bytes) == Bytes260.vocab_size == 260
