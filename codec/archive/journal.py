"""Keep a journal of an interruptible job: a file beside the target with what is done, never to be taken for the target.

Behind `UPZJ` come frames, one after the other: u32 length, u32 CRC-32, then `length` bytes, little-endian. The first
frame describes the job. A frame counts once it is complete. Whatever a kill or a power cut has left behind the last
whole frame is cut off when the job is resumed.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from codec.errors import CodecError, FormatError, MismatchError
from codec.files import named

try:
    import fcntl
except ImportError:  # Windows: two jobs at once are noticed at the end
    fcntl = None  # type: ignore[assignment]

MAGIC = b"UPZJ"
"""The first bytes of a journal."""

_FRAME = struct.Struct("<II")
_MAX_FRAME = 1 << 31


class Journal:
    """The journal of a job, open and locked.

    Args:
        path: of the file.
        job: a description of the job; only a job of the same description can be resumed.
        resume: continue behind the frames that are there, if there is a journal.
        force: replace a journal that is there by a new one.

    Raises:
        FormatError: the file that is there is no journal.
        MismatchError: the journal is of another job, or of one that could be resumed.
        CodecError: another process works on the job.
    """

    def __init__(self, path: Path, job: bytes, resume: bool, force: bool = False):
        self.path = path
        self._stream = _open(path)
        try:
            self._begin(job, resume, force)
        except BaseException:
            self._stream.close()
            raise

    def _begin(self, job: bytes, resume: bool, force: bool) -> None:
        head = self._stream.read(len(MAGIC))
        if not MAGIC.startswith(head):
            raise FormatError(f"{self.path}: it is in the way and no journal of ours; move it elsewhere")
        self._ends = [end for end, _ in _frames(self._stream)]
        if len(self) > 0 and not resume and not force:
            raise MismatchError(
                f"{self.path}: holds what an interrupted job has done; go on with --resume, or begin again with --force"
            )
        if force and not resume:
            self._ends = []
        if not self._ends:
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(MAGIC)
            self.add(job)
        elif next(_frames(self._stream))[1] != job:
            raise MismatchError(f"{self.path}: of another pack, archive or policy; begin again with --force")
        self._stream.seek(self._ends[-1])
        self._stream.truncate()

    def __len__(self) -> int:
        """Return the number of frames."""
        return max(0, len(self._ends) - 1)

    def add(self, frame: bytes) -> None:
        """Commit a frame of at least one byte; the frame is on the disk when this returns."""
        self._stream.seek(self._ends[-1] if self._ends else len(MAGIC))
        with named(self.path):
            self._stream.write(_FRAME.pack(len(frame), zlib.crc32(frame)) + frame)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._ends.append(self._stream.tell())

    def frames(self) -> Iterator[bytes]:
        """Yield the frames in order. Raises FormatError if somebody else changed the file."""
        for count, end in enumerate(self._ends[1:], 1):
            self._stream.seek(self._ends[count - 1])
            head = self._stream.read(_FRAME.size)
            frame = self._stream.read(end - self._ends[count - 1] - _FRAME.size)
            if head != _FRAME.pack(len(frame), zlib.crc32(frame)):
                raise FormatError(f"{self.path}: changed while it was in use; run one job at a time")
            yield frame

    def close(self) -> None:
        """Leave the journal for a job that is resumed; remove a journal without frames."""
        if not len(self):
            self.path.unlink(missing_ok=True)
        self._stream.close()

    def remove(self) -> None:
        """Close and remove the journal of a job that is done."""
        self.path.unlink(missing_ok=True)
        self._stream.close()


def is_empty(path: Path) -> bool:
    """Return whether a job has no journal, or one with no more than the description of the job."""
    try:
        with path.open("rb") as stream:
            return MAGIC.startswith(stream.read(len(MAGIC))) and len(list(islice(_frames(stream), 2))) < 2
    except FileNotFoundError:
        return True


def _frames(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Return the whole frames of a journal, and where each ends."""
    stream.seek(len(MAGIC))
    while len(head := stream.read(_FRAME.size)) == _FRAME.size:
        length, crc = _FRAME.unpack(head)
        frame = stream.read(length) if length <= _MAX_FRAME else b""
        if not frame or len(frame) != length or zlib.crc32(frame) != crc:  # zeros are what a power cut may leave
            return
        yield stream.tell(), frame


def _open(path: Path) -> BinaryIO:
    """Open and lock a regular file, made if there is none, never through a link."""
    stream = _locked(path)
    while fcntl and not _is_at(stream, path):  # the job before removed it between opening and locking
        stream.close()
        stream = _locked(path)
    return stream


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _locked(path: Path) -> BinaryIO:
    try:
        number = os.open(
            path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o600
        )
    except OSError as error:
        raise FormatError(
            f"{path}: it is in the way and no journal of ours ({error.strerror}); move it elsewhere"
        ) from error
    stream = os.fdopen(number, "r+b")
    if fcntl:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise CodecError(
                f"{path}: another process is at this job; wait for it, or choose another output"
            ) from error
    return stream
