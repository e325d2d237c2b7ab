"""Archives from Python: files of an archive as file objects, on streams of other libraries, from several threads."""

import csv
import io
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from codec.archive.encode_files import Settings, encode_files
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.archive.writer import ArchiveWriter
from codec.errors import FormatError
from tests.support.by_heart import PACK, by_heart

__all__ = ["by_heart"]

NUMBERS = "".join(f"{n},{n * n}\n" for n in range(20_000)).encode()
FILES = {"numbers.csv": NUMBERS, "noise": bytes(random.Random(0).randbytes(50_000)), "empty": b"", "sub/one": b"1"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """An archive of FILES, made without a model."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    encode_files(find_sources([folder / "in"]), folder / "a.upz", Settings(independent=True))
    return folder / "a.upz"


def test_reading_and_seeking_are_those_of_files(archive):
    with ArchiveReader(archive) as reader, reader.open("numbers.csv") as file, io.BytesIO(NUMBERS) as plain:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        generator = random.Random(1)
        for _ in range(300):
            whence = generator.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            base = {os.SEEK_SET: 0, os.SEEK_CUR: plain.tell(), os.SEEK_END: len(NUMBERS)}[whence]
            offset = generator.randrange(len(NUMBERS) + 100) - base
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            count = generator.choice([0, 1, 100, 9000, -1])
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()
        with pytest.raises(ValueError, match="at least 0"):
            file.raw.seek(-1)


def test_lines_and_other_libraries(archive, tmp_path):
    with ArchiveReader(archive) as reader:
        with reader.open("numbers.csv") as file:
            assert list(file) == NUMBERS.splitlines(keepends=True)
        with io.TextIOWrapper(reader.open("numbers.csv"), newline="") as text:
            assert next(reversed(list(csv.reader(text)))) == ["19999", str(19999**2)]
        with reader.open("noise") as file, (tmp_path / "copy").open("wb") as out:
            shutil.copyfileobj(file, out, 777)
        assert (tmp_path / "copy").read_bytes() == FILES["noise"]
        assert {name: reader.open(name).read() for name in reader.names()} == FILES
        with pytest.raises(FormatError, match="no such file"):
            reader.open("nothing")


def test_a_stream_of_fsspec(archive):
    memory = fsspec.filesystem("memory")
    memory.pipe("/a.upz", archive.read_bytes())
    with memory.open("/a.upz", "rb") as stream, ArchiveReader(stream) as reader, reader.open("numbers.csv") as file:
        file.seek(1000)
        assert file.read(500) == NUMBERS[1000:1500]


def test_several_threads_read_one_archive(archive):
    with ArchiveReader(archive) as reader, ThreadPoolExecutor(8) as pool:

        def part(n: int) -> bool:
            name = ("numbers.csv", "noise")[n % 2]
            at = n * 797 % len(FILES[name])
            with reader.open(name) as file:
                file.seek(at)
                return file.read(3000) == FILES[name][at : at + 3000]

        assert all(pool.map(part, range(64)))


@pytest.mark.usefixtures("by_heart")
def test_documents_from_several_threads(tmp_path):
    documents = [f"Document {n} has some words. ".encode() * 3 for n in range(40)]
    path = tmp_path / "d.upz"
    with path.open("wb") as stream, ArchiveWriter(stream, PACK) as writer:
        writer.append(documents[:25])
        writer.append(documents[25:])
    with ArchiveReader(path, PACK) as reader, ThreadPoolExecutor(4) as pool:
        assert [found[0] for found in pool.map(lambda n: reader.decode([n]), range(40))] == documents
        assert list(reader.iterate()) == documents


@pytest.mark.usefixtures("by_heart")
def test_a_writer_that_fails_leaves_no_index(tmp_path):
    path = tmp_path / "d.upz"
    with pytest.raises(KeyError), path.open("wb") as stream, ArchiveWriter(stream, PACK) as writer:
        writer.append([b"some words"])
        raise KeyError
    with pytest.raises(FormatError):
        ArchiveReader(path)


def test_the_time_of_a_range_does_not_grow(tmp_path):
    """Bytes that are read for a range of archives of 48 and 240 documents: the index, and then one document."""
    found = []
    for count in (48, 240):
        (tmp_path / str(count)).mkdir()
        for n in range(count):
            (tmp_path / str(count) / f"{n:04}").write_bytes(random.Random(n).randbytes(20_000))
        archive = tmp_path / f"{count}.upz"
        encode_files(find_sources([tmp_path / str(count)]), archive, Settings(independent=True))
        with archive.open("rb") as stream:
            reader = ArchiveReader(counting := _Counting(stream))  # type: ignore[arg-type]
            counting.count = 0
            with reader.open("0033") as file:
                file.seek(10_000)
                assert file.read(100) == random.Random(33).randbytes(20_000)[10_000:10_100]
            found.append(counting.count)
    assert found[0] == found[1] < 2 * (1 << 16) + 100


class _Counting:
    """A stream that counts the bytes that are read."""

    def __init__(self, stream: io.BufferedReader):
        self._stream, self.count = stream, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data
