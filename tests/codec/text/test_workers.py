"""codec.text.workers: several processes make the bytes of one, and end with their work, on errors, and with their
parent.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from codec.archive import part_coder
from codec.archive import reader as reading
from codec.archive.decode_files import decode_files
from codec.archive.encode_files import Settings, encode_files, partial
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.errors import CodecError, DocumentError, FormatError, MismatchError, WorkerError
from codec.text import workers
from codec.text.open_coder import default_policy, make_coder, open_coder
from codec.text.policy import Policy
from codec.text.workers import Workers, portions
from eval.proof.prove import prove
from tests.support import fuzzing, proofs
from tests.support.helpers import ROOT
from trainer.data.sample import val_documents

TWO = "cpu,cpu"
TEXTS = [document[: 40 * n] for n, document in zip(range(12), val_documents(), strict=False)]
DOCUMENTS = [*fuzzing.DOCUMENTS, *TEXTS, b"\xff" * 300]


@pytest.fixture(scope="module")
def two() -> Workers:
    """Started by the first test that needs it."""
    found = open_coder(fuzzing.pack(), device=TWO)
    assert isinstance(found, Workers)
    return found


@pytest.fixture
def started(monkeypatch) -> list["subprocess.Popen[bytes]"]:
    """The processes of workers, as they are started."""
    found, plain = [], subprocess.Popen

    def start(*arguments, **options):
        found.append(plain(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    return found


def all_ended(processes: list["subprocess.Popen[bytes]"]) -> bool:
    return all(process.poll() is not None for process in processes)


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 5))
def test_portions_are_about_the_same(sizes, count):
    parts = portions(sizes, count)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert len(parts) == min(count, len(sizes))
    assert all(parts)
    loads = [sum(sizes[i] + 1 for i in part) for part in parts]
    for part, load in zip(parts, loads, strict=True):
        assert [sizes[i] for i in part] == sorted((sizes[i] for i in part), reverse=True)
        assert load - (sizes[part[-1]] + 1) <= min(loads)  # whoever took a document had the least


def test_the_same_records(two):
    one = make_coder(fuzzing.pack())
    for model_only in (False, True):
        told: list[float] = []
        records = two.encode(DOCUMENTS, model_only, told.append)
        assert records == one.encode(DOCUMENTS, model_only)
        assert sum(told) == pytest.approx(sum(map(len, DOCUMENTS)))
    payloads = {100 - n: record.payload for n, record in enumerate(records)}
    told = []
    assert dict(two.decode(payloads, told.append)) == {100 - n: document for n, document in enumerate(DOCUMENTS)}
    assert sum(told) == sum(map(len, payloads.values()))
    assert (two.encode([]), list(two.decode({}))) == ([], [])


def test_the_same_archive(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "GROUP_BYTES", {"cpu": 200})
    pack, packed = fuzzing.pack(), []
    for device in ("cpu", TWO):
        with (
            (tmp_path / "a.upz").open("wb") as stream,
            codec.ArchiveWriter(stream, pack, Policy(8), device) as writer,
        ):
            writer.append(DOCUMENTS[:3])
            writer.append(DOCUMENTS[3:])
        packed.append((tmp_path / "a.upz").read_bytes())
    assert packed[0] == packed[1]
    with (tmp_path / "a.upz").open("rb") as stream:
        reader = ArchiveReader(stream, pack, TWO)
        assert reader.decode() == DOCUMENTS
        assert reader.decode([7, 0, 7, 3]) == [DOCUMENTS[n] for n in (7, 0, 7, 3)]


def test_one_document_starts_one_process(started):
    coder = open_coder(fuzzing.pack(), device=TWO)
    (record,) = coder.encode([TEXTS[5]], model_only=True)
    assert len(started) == 1
    assert dict(coder.decode({3: record.payload})) == {3: TEXTS[5]}
    assert len(started) == 1
    del coder
    assert all_ended(started)


def test_a_proof_holds():
    found = prove(proofs.blob(), proofs.DOCUMENTS, TWO)
    times = {"encode_seconds": 0, "decode_seconds": 0, "code_bytes": 0}
    assert found.ok
    assert found.to_json() | times == proofs.proof().to_json() | times
    assert found.records == proofs.proof().records


def outcome(coder, payloads):
    """What decoding ends in: an error's type, words and fields."""
    with pytest.raises(CodecError) as caught:
        dict(coder.decode(payloads))
    return type(caught.value), str(caught.value), vars(caught.value)


def test_errors_are_those_of_one_process(two):
    one = make_coder(fuzzing.pack())
    (record,) = one.encode([b"\n\n\n".join(TEXTS)], model_only=True)
    longer, broken = record.payload + b"\0", record.payload[: len(record.payload) // 2]
    kind, words, _ = outcome(two, {7: longer})
    assert (kind, words) == (FormatError, outcome(one, {7: longer})[1])
    kind, words, fields = outcome(two, {7: broken})
    assert (kind, words, fields) == outcome(one, {7: broken})
    assert (kind, fields["document"]) == (DocumentError, 7)
    assert TEXTS[1][:20] in fields["decoded"]
    assert two.encode(DOCUMENTS) == one.encode(DOCUMENTS)  # with new processes


def test_errors_of_a_pack_and_a_policy():
    weights_only = codec.open(codec.compress({"w": codec.open(fuzzing.blob()).state_dict()["tok_emb.weight"]}))
    with pytest.raises(MismatchError, match="weights only"):
        open_coder(weights_only, device=TWO)
    with pytest.raises(FormatError, match="expected 1 to"):
        open_coder(fuzzing.pack(), Policy(4096), TWO)
    with pytest.raises(CodecError, match="expected cpu or cuda"):
        make_coder(fuzzing.pack(), device=TWO)


def test_other_errors_say_whose_they_are(two):
    with pytest.raises(WorkerError, match=r"^worker 0 \(cpu\) failed: TypeError: ") as caught:
        two.encode(["not bytes"])
    assert "in prepare" in caught.value.__notes__[0]


def test_an_interrupt_ends_them(started):
    coder = Workers(fuzzing.pack(), default_policy(fuzzing.pack()), ["cpu", "cpu"])

    def interrupt(amount: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coder.encode(DOCUMENTS, advance=interrupt)
    assert len(started) == 2
    assert all_ended(started)


def test_decoders_may_be_left_and_interleaved(two):
    records = two.encode(TEXTS[1:5], model_only=True)
    payloads = {n: record.payload for n, record in enumerate(records)}
    left = two.decode(payloads)
    next(left)
    both = [dict([next(decoding), *decoding]) for decoding in (two.decode(payloads), two.decode(payloads))]
    assert both == [dict(enumerate(TEXTS[1:5]))] * 2
    left.close()
    assert dict(two.decode(payloads)) == dict(enumerate(TEXTS[1:5]))


def test_a_dead_worker_leaves_no_output(tmp_path, monkeypatch, started):
    """Killed behind the first group; encoding goes on later, to the same bytes."""
    monkeypatch.setattr(part_coder, "GROUP_BYTES", {"cpu": 300})  # the third of four has documents for both
    monkeypatch.setattr(part_coder, "_PIECE", 100)
    monkeypatch.setattr(reading, "GROUP_BYTES", {"cpu": 100})
    (tmp_path / "text").write_bytes(b"".join(TEXTS))
    (tmp_path / "in").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "in" / f"{n:02}").write_bytes(text)
    target, pack = tmp_path / "a.upz", fuzzing.pack()

    def encode(device: str, path: Path = target, **options: object) -> None:
        encode_files(find_sources([tmp_path / "in"]), path, Settings(pack, device=device, independent=True), **options)

    def kill() -> None:
        started[1].kill()
        started[1].wait()

    sizes: list[int] = []

    def kill_behind_the_first_group(tally: object, amount: float) -> None:
        sizes.append(partial(target).stat().st_size)
        if sizes[-1] > sizes[0]:
            kill()

    with pytest.raises(WorkerError, match=r"^worker 1 \(cpu\) ended with SIGKILL before"):
        encode(TWO, watch=kill_behind_the_first_group)
    assert len(started) == 2
    assert all_ended(started)
    assert not target.exists()
    assert partial(target).exists()
    encode(TWO, resume=True)
    encode("cpu", tmp_path / "one.upz")
    assert target.read_bytes() == (tmp_path / "one.upz").read_bytes()

    del started[:]
    with target.open("rb") as stream, pytest.raises(WorkerError, match=r"worker 1 .* SIGKILL"):
        decode_files(ArchiveReader(stream, pack, TWO), tmp_path / "out", advance=lambda amount: amount and kill())
    assert len(started) == 2
    assert all_ended(started)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.upz", "in", "one.upz", "text"]


PARENT = """
import os, sys, time
from codec.text.policy import Policy
from codec.text.workers import Workers
from tests.support import fuzzing
coder = Workers(fuzzing.pack(), Policy(8), ["cpu", "cpu"])
coder.encode([b"a", b"b"])
print(*(worker._process.pid for worker in coder._idle.values()), flush=True)
coder.encode([b"some words " * 100_000, b"some words " * 100_000], model_only=True)
"""


def test_they_end_with_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    limit = time.monotonic() + 60
    while any(runs(child) for child in children):
        assert time.monotonic() < limit
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], stdout=subprocess.PIPE, check=False)
        return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith(b"Z")
    return False
