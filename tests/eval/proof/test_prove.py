"""eval.proof.prove: a proof holds on any bytes, accounts for every bit, and fails aloud when the archive is damaged."""

import hashlib
import json
import sys
from dataclasses import fields

import numpy as np
import pytest

import codec
import eval.proof.prove
from codec.console import CheckFailed
from codec.errors import CodecError
from codec.text.documents import MODELLED, STORED, prepare, write_record
from eval.proof.prove import FirstDifference, Proof, fingerprint, first_difference, prove, same_bytes
from tests.support.helpers import lossless_tokenizer
from tests.support.proofs import DOCUMENTS, blob, pack, proof
from trainer.data.sample import sp1024
from underpar.cli import main

STABLE = {
    *("ok", "documents", "text_bytes", "bpb_float", "bpb_exact", "bpb_ideal", "bpb_coded", "bpb_canonical", "bpb_raw"),
    *("payload_bytes", "framing_bytes", "archive_bytes", "pack_bytes", "code_bytes"),
    *("encode_seconds", "decode_seconds", "sha256"),
}
"""The fields that DESIGN.md promises."""

PLAIN = [b"The first page is short.", b"The second page is as short as the first.", b"And this is the third."]


@pytest.fixture
def sabotage(monkeypatch):
    """Change an archive between encoder and decoder: xor the byte `offset` of the chunk of a document."""

    def arm(document, offset):
        honest = eval.proof.prove._decode

        def decode(folder, device):
            path = folder / "text.upz"
            data = bytearray(path.read_bytes())
            with path.open("rb") as stream:
                begin = codec.ArchiveReader(stream, pack()).contents.offsets[document]
            data[begin + offset] ^= 0x55
            path.write_bytes(data)
            return honest(folder, device)

        monkeypatch.setattr(eval.proof.prove, "_decode", decode)

    return arm


def test_it_holds_on_any_bytes():
    found = proof()
    assert found.ok
    assert found.first_difference is None
    assert (found.documents, found.text_bytes) == (len(DOCUMENTS), sum(map(len, DOCUMENTS)))
    modes = {record.mode for record in found.records}
    assert modes == {MODELLED, STORED}
    kept = [document for document, record in zip(DOCUMENTS, found.records, strict=True) if record.mode == STORED]
    assert (found.stored, found.stored_bytes) == (len(kept), sum(map(len, kept)))


def test_json_has_the_stable_fields():
    values = proof().to_json()
    assert set(values) >= STABLE
    assert set(values) - STABLE == {
        "canonical_bytes",
        "tokens",
        "stored",
        "stored_bytes",
        "adaptation",
        "bpb_unadapted",
    }
    assert values["ok"] is True
    assert json.loads(json.dumps(values)) == values


def test_every_byte_of_the_archive_is_accounted_for():
    found = proof()
    assert found.payload_bytes + found.framing_bytes == found.archive_bytes
    assert found.payload_bytes == sum(len(record.payload) for record in found.records)
    assert found.bpb_raw == 8 * found.archive_bytes / found.text_bytes
    assert found.bpb_canonical == 8 * found.payload_bytes / found.canonical_bytes
    assert found.pack_bytes == len(blob())
    assert 20_000 < found.code_bytes < 1_000_000


def test_what_is_coded_is_what_the_model_says(tmp_path):
    found = prove(blob(), PLAIN, keep=tmp_path / "kept.upz")
    assert found.ok
    assert found.stored == 0
    assert abs(found.bpb_exact - found.bpb_float) < 0.002
    assert abs(found.bpb_ideal / found.bpb_exact - 1) < 0.002  # random weights: symbols below the least frequency
    assert (found.adaptation, found.bpb_unadapted) == ("none", found.bpb_ideal)
    ideal_bits = found.bpb_ideal * found.canonical_bytes
    assert ideal_bits <= 8 * found.payload_bytes <= 1.0005 * ideal_bits + 8 * 2 * len(PLAIN)  # an end and no edits
    kept = (tmp_path / "kept.upz").read_bytes()
    assert len(kept) == found.archive_bytes
    assert codec.decode(pack(), kept) == PLAIN


def test_the_fingerprint_tells_documents_apart():
    assert proof().sha256 == fingerprint(DOCUMENTS)
    assert fingerprint([b"ab"]) == hashlib.sha256(b"\x02" + bytes(7) + b"ab").hexdigest()
    assert len({fingerprint(d) for d in ([b"ab"], [b"a", b"b"], [b"", b"ab"], [])}) == 4


@pytest.mark.parametrize("documents", [[], [b""], [b"", b""]])
def test_of_no_text_nothing_is_proved(documents):
    with pytest.raises(CodecError, match="nothing to prove"):
        prove(blob(), documents)


def test_where_the_model_coded_nothing_nothing_is_proved(tmp_path):
    with pytest.raises(CodecError, match="a general compressor needs fewer bytes"):
        prove(blob(), [b"again " * 1000, bytes(1000)], keep=tmp_path / "kept.upz")
    assert not (tmp_path / "kept.upz").exists()


def test_canonical_bytes_are_never_more_than_the_text_has():
    """A normaliser that writes 33 bytes for 3, and bytes that are no UTF-8, which decode to 3 each."""
    for document, tokenizer in (
        ("\ufdfa".encode() * 20, sp1024()),
        (bytes(range(0x80, 0x100)), lossless_tokenizer()),
        (b"plain", sp1024()),
    ):
        prepared = prepare(document, tokenizer, model_only=True)
        assert len(prepared.canonical) > 2 * len(document) or document == b"plain"
        ends = len(prepared.stream) - 1
        flat = np.full(ends, 1 << 10)
        record = write_record(prepared, flat * 0, flat, 1.0, 24, model_only=True)
        assert record.canonical_bytes == record.text_bytes == len(document)


@pytest.mark.parametrize(
    "restored, expected",
    [
        ([b"ab", b"cd"], None),
        ([b"ab", b"cx"], FirstDifference(1, 1)),
        ([b"xb", b"xd"], FirstDifference(0, 0)),
        ([b"ab", b"c"], FirstDifference(1, 1)),
        ([b"ab", b"cde"], FirstDifference(1, 2)),
        ([b"ab"], FirstDifference(1, 0)),
        ([b"ab", b"cd", b""], FirstDifference(2, 0)),
    ],
)
def test_the_first_difference(restored, expected):
    assert first_difference([b"ab", b"cd"], restored) == expected


def test_same_bytes_is_where_two_texts_part():
    assert [same_bytes(b"abc", other) for other in (b"abc", b"abx", b"", b"abcd")] == [3, 2, 0, 3]


def test_a_decoder_that_dies_fails_the_proof(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckFailed, match="status 1"):
        prove(blob(), PLAIN[:1])


def test_the_command_fails_aloud(sabotage, monkeypatch, capsys, tmp_path):
    file, text = tmp_path / "tiny.pack", tmp_path / "text.jsonl"
    file.write_bytes(blob())
    text.write_text("".join(json.dumps({"text": document.decode()}) + "\n" for document in PLAIN))
    sabotage(document=1, offset=1 + 4 + 6)  # behind length and CRC-32: in the middle of the payload
    words = ["underpar", "prove", str(file), "--docs", str(text), "--json", "--save", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    told = json.loads(out)
    assert told["ok"] is False
    where = told["first_difference"]
    assert where["document"] == 1
    assert 0 < where["byte"] < len(PLAIN[1])
    assert f"document 1 differs from byte {where['byte']} on" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run" / "proof.json").read_bytes()) == told


def test_records_are_no_part_of_the_json():
    assert "records" in {field.name for field in fields(Proof)}
    assert "records" not in proof().to_json()
