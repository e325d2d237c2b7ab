"""codec.text.cluster: 1, 2 and 4 actors make the bytes of one process, also through the command line."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codec.archive.decode_files import decode_files
from codec.archive.encode_files import Settings, encode_files
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.errors import CodecError, DocumentError, FormatError
from codec.text.cluster.batches import DecodeBatch, EncodeBatch
from codec.text.cluster.coder import Cluster
from codec.text.cluster.connection import import_ray
from codec.text.open_coder import make_coder, open_coder
from tests.support import fuzzing
from tests.support.helpers import ROOT
from trainer.data.sample import val_documents

pytestmark = pytest.mark.timeout(900)
"""Actors compile, each on one processor, where the machine has not compiled the code yet."""

TEXTS = [document[: 40 * n] for n, document in zip(range(12), val_documents(), strict=False)]
DOCUMENTS = [*fuzzing.DOCUMENTS, *TEXTS, b"\xff" * 300]
BATCH = {"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS}


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine with four processors, as Ray counts them."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'underpar[ray]'")
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(address="local", num_cpus=4, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_the_same_records_and_archive(cluster, tmp_path, monkeypatch, actors):
    device = ",".join(["cpu"] * actors) + "@local"
    if actors == 1:  # a single name stands for all that the cluster has
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    one, many = make_coder(fuzzing.pack()), open_coder(fuzzing.pack(), device=device)
    assert isinstance(many, Cluster)
    told: list[float] = []
    records = many.encode(DOCUMENTS, True, told.append)
    assert records == one.encode(DOCUMENTS, True) and sum(told) == sum(map(len, DOCUMENTS))
    payloads = {100 - n: record.payload for n, record in enumerate(records)}
    assert dict(many.decode(payloads)) == {100 - n: document for n, document in enumerate(DOCUMENTS)}
    groups = list(many.encode_groups(iter(DOCUMENTS), 200, True))
    assert [d for group, _ in groups for d in group] == DOCUMENTS and len(groups) > 4
    assert [r for _, found in groups for r in found] == records
    (longest,) = one.encode([b"\n\n\n".join(TEXTS)], True)
    with pytest.raises(DocumentError, match="document 7: its record"):
        dict(many.decode({**payloads, 7: longest.payload[: len(longest.payload) // 2]}))
    del many
    gc.collect()  # actors that no error has ended keep their processors, which those of the archive need
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text.decode(errors="replace")}) + "\n" for text in TEXTS * 3))
    monkeypatch.setattr("codec.archive.part_coder.GROUP_BYTES", {"cpu": 700})
    for name, where in (("one", "cpu"), ("many", device)):
        settings = Settings(fuzzing.pack(), device=where, independent=True)
        encode_files(find_sources([lines]), tmp_path / name, settings)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    with ArchiveReader(tmp_path / "many", fuzzing.pack(), device) as reader:
        decode_files(reader, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == lines.read_bytes()


def test_reading_that_fails(cluster):
    def documents():
        yield from DOCUMENTS
        raise OSError("the disk")

    found = []
    with pytest.raises(OSError, match="the disk"):
        for group, _ in open_coder(fuzzing.pack(), device="cpu,cpu@local").encode_groups(documents(), 300):
            found += group
    assert found == DOCUMENTS[: len(found)] and len(found) > 3


@pytest.mark.long
def test_batches_of_a_data_set(cluster, tmp_path):
    """Parquet to records and back through ray.data."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    pq.write_table(pa.table({"id": BATCH["id"], "text": BATCH["text"]}), tmp_path / "in.parquet")
    (tmp_path / "tiny.pack").write_bytes(fuzzing.pack().source.read(0, fuzzing.pack().size))
    given = {"fn_constructor_args": (str(tmp_path / "tiny.pack"),), "concurrency": 1, "batch_size": 8}
    data = ray.data.read_parquet(str(tmp_path / "in.parquet")).map_batches(EncodeBatch, **given)
    data.write_parquet(str(tmp_path / "records"))
    back = ray.data.read_parquet(str(tmp_path / "records")).map_batches(DecodeBatch, **given)
    assert {row["id"]: row["text"] for row in back.take_all()} == dict(enumerate(DOCUMENTS))


def test_batches_without_ray():
    encode, decode = EncodeBatch(fuzzing.pack()), DecodeBatch(fuzzing.pack())
    records = encode(BATCH)
    assert [bytes(p) for p in records["payload"]] == [r.payload for r in make_coder(fuzzing.pack()).encode(DOCUMENTS)]
    back = decode(records)
    assert (back["id"], back["text"].tolist()) == (BATCH["id"], DOCUMENTS)
    assert encode({"text": ["é"]})["text_bytes"].tolist() == [2]
    with pytest.raises(FormatError, match="it has columns id, expected text"):
        encode({"id": [1]})
    with pytest.raises(FormatError, match="a document is a NoneType"):
        encode({"text": [None]})
    with pytest.raises(FormatError, match="mode 9"):
        decode({**records, "mode": [9] * len(DOCUMENTS)})
    with pytest.raises(DocumentError, match="CRC-32 is wrong"):
        decode({**records, "crc": records["crc"] ^ 1})


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CodecError, match=r"Ray is not installed here .*pip install 'underpar\[ray\]'"):
        import_ray()


def marked(mark: str) -> list[int]:
    """The processes that were started with a variable in their environment."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and f"MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.long
@pytest.mark.parametrize("ends_by", ["itself", "interrupt"])
def test_the_command_leaves_no_processes(tmp_path, ends_by):
    """A cluster of this machine ends with its command; what is done is kept where the command is interrupted."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'underpar[ray]'")
    count = 3 if ends_by == "itself" else 2000
    lines = b"".join(b'{"text": "%d words of a document, a few."}\n' % n for n in range(40 * count))
    (tmp_path / "t.jsonl").write_bytes(lines)
    environment = {**os.environ, "MARK": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "underpar", "encode", "t.jsonl", "--independent", "--ray", "local", "-o", "t.upz"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    if ends_by == "interrupt":
        journal = tmp_path / "t.upz.partial"
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 1000):
            time.sleep(0.2)
        assert len(marked(str(tmp_path))) > 3
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=250)[1].decode()
    assert process.returncode == (0 if ends_by == "itself" else 130), said
    end = time.monotonic() + 20
    while (left := marked(str(tmp_path))) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == [], said
    if ends_by == "interrupt":
        assert "go on with --resume" in said
    else:
        subprocess.run(
            [sys.executable, "-m", "underpar", "encode", "t.jsonl", "--independent", "-o", "one.upz"],
            cwd=tmp_path,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        assert (tmp_path / "one.upz").read_bytes() == (tmp_path / "t.upz").read_bytes()
