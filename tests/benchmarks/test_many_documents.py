"""Archives of millions of tiny documents: time and memory of writing, listing, reading at random, merging.

pytest -s -m benchmark tests/benchmarks/test_many_documents.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

WORK = r"""
import random, sys, time
from pathlib import Path
from zlib import crc32
from codec.archive.format import Header, read_contents
from codec.archive.reader import ArchiveReader
from codec.archive.whole.merge import merge
from codec.archive.writer import ChunkWriter
from codec.text.documents import STORED, Record

def text(n):
    return b"document %d" % (7919 * n)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage's peak begins with that of the parent
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

what, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
base, begun, told = peak(), time.process_time(), ""
if what == "write":
    with path.open("wb") as out:
        chunks = ChunkWriter(out, Header())
        for n in range(count):
            document = text(n)
            size = len(document)
            chunks.add(Record(STORED, b"\0" + document, crc32(document), size, size, 0, 0.0, 0.0))
        chunks.close([])
    told = f", {path.stat().st_size:,} bytes"
elif what == "list":
    with path.open("rb") as stream:
        read_contents(stream)
elif what == "read":
    with ArchiveReader(path) as reader:
        opened = time.process_time() - begun
        wanted = [random.Random(0).randrange(count) for _ in range(1000)]
        for n in wanted:
            assert reader.decode([n]) == [text(n)]
    told = f", {opened:.2f} s of it to open, for 1,000 documents"
else:
    merge([path], path.with_suffix(".merged"))
print(f"{count:,} documents, {what}: {time.process_time() - begun:.2f} s, {peak() - base:,.0f} MiB{told}")
"""


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1_000_000, 10_000_000])
def test_many_documents(tmp_path: Path, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for what in ("write", "list", "read", "merge"):
        command = [sys.executable, "-c", WORK, what, str(count), str(tmp_path / "many.upz")]
        print(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout, end="")
