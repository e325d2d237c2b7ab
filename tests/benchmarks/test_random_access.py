"""The time to read one member, and one range, of archives of 1, 10 and 100 MB, by name.

pytest -s -m benchmark tests/benchmarks/test_random_access.py
"""

import statistics
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from codec.archive.format import Header, Tag
from codec.archive.members import Member
from codec.archive.reader import ArchiveReader
from codec.archive.writer import ChunkWriter
from codec.text.documents import Record
from codec.text.stored import Method

pytestmark = pytest.mark.benchmark

PIECE, PIECES = 1 << 14, 16  # bytes of a record, records of a file
SIZES = (1_000_000, 10_000_000, 100_000_000)


def write(path: Path, count: int) -> None:
    """Write an archive of files of noise, in records that are stored as they are."""
    generator = np.random.default_rng(0)
    with path.open("wb") as stream:
        chunks = ChunkWriter(stream, Header())
        for _ in range(count * PIECES):
            data = generator.bytes(PIECE)
            payload = bytes([Method.RAW]) + data
            chunks.add(Record(Tag.STORED, payload, zlib.crc32(data), PIECE, PIECE, 0, 0.0, 0.0))
        chunks.close([Member(f"{n:05}", size=PIECE * PIECES, mode=0o644, mtime=0) for n in range(count)])


def test_random_access(tmp_path):
    """Opened anew each time, as a command does: the index is read, then what the range needs."""
    print("\n| archive, bytes | files | open, ms | a range of 100 bytes, ms | a file of 262,144 bytes, ms |")
    for size in SIZES:
        count = size // (PIECE * PIECES)
        write(archive := tmp_path / f"{size}.upz", count)
        name = f"{count // 2:05}"
        opening, ranges, files = [], [], []
        for _ in range(25):
            begin = time.perf_counter()
            with ArchiveReader(archive) as reader:
                opening.append(time.perf_counter() - begin)
                with reader.open(name) as file:
                    file.seek(200_000)
                    assert len(file.read(100)) == 100
            ranges.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            with ArchiveReader(archive) as reader, reader.open(name) as file:
                assert len(file.read()) == PIECE * PIECES
            files.append(time.perf_counter() - begin)
        times = " | ".join(f"{1000 * statistics.median(each):.1f}" for each in (opening, ranges, files))
        print(f"| {archive.stat().st_size:,} | {count:,} | {times} |", flush=True)
