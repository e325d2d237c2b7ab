"""A journal: what an interrupted job has done, in a file beside its target; it never looks like the target.

Frames, one after the other: u32 length, u32 CRC-32, then so many bytes, little-endian. The first frame says what the
job is. A frame counts once it is there as a whole; whatever a kill or a power cut left behind the last whole one is cut
off when the job goes on.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from codec.errors import FormatError, MismatchError

_FRAME = struct.Struct("<II")
_MAX_FRAME = 1 << 31


class Journal:
    """The journal of a job, open.

    Args:
        path: where it is.
        job: what it is about; a journal of another job does not go on.
        resume: go on where the journal ends, if there is one; a new one is begun otherwise.

    Raises:
        MismatchError: the journal is of another job.
    """

    def __init__(self, path: Path, job: bytes, resume: bool):
        self.path = path
        self._stream = path.open("r+b" if resume and path.exists() else "w+b")
        self._ends = [end for end, _ in self._read()]
        if not self._ends:
            self._stream.seek(0)
            self._stream.truncate()
            self.add(job)
        elif next(self._read())[1] != job:
            self._stream.close()
            raise MismatchError(f"{path}: of another pack, archive or policy; leave out --resume to begin again")
        self._stream.seek(self._ends[-1])
        self._stream.truncate()

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Whole frames and where they end."""
        self._stream.seek(0)
        while len(head := self._stream.read(_FRAME.size)) == _FRAME.size:
            length, crc = _FRAME.unpack(head)
            frame = self._stream.read(length) if length <= _MAX_FRAME else b""
            if not frame or len(frame) != length or zlib.crc32(frame) != crc:  # zeros are what a power cut may leave
                return
            yield self._stream.tell(), frame

    def __len__(self) -> int:
        """Frames that have been added."""
        return len(self._ends) - 1

    def add(self, frame: bytes) -> None:
        """Commit a frame of at least a byte; it is on the disk when this returns."""
        self._stream.seek(self._ends[-1] if self._ends else 0)
        self._stream.write(_FRAME.pack(len(frame), zlib.crc32(frame)) + frame)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._ends.append(self._stream.tell())

    def frames(self) -> Iterator[bytes]:
        """The frames that have been added, in turn. Raises FormatError if someone else changed the file."""
        count = 0
        for end, frame in self._read():
            if count and end != self._ends[count]:
                break
            if count:
                yield frame
            count += 1
        if count != len(self._ends):
            raise FormatError(f"{self.path}: changed while it was in use; run one job at a time")

    def close(self) -> None:
        """Leave it for a job that goes on; remove it if nothing has been added."""
        self._stream.close()
        if not len(self):
            self.path.unlink(missing_ok=True)
