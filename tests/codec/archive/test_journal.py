"""codec.archive.journal: whole frames survive whatever happened to the end of the file."""

import pytest

from codec.archive.journal import Journal
from codec.errors import FormatError, MismatchError

FRAMES = [b"first", b"1", b"\5" * 100, b"UPTX"]


def written(path, frames=FRAMES):
    journal = Journal(path, b"job", False)
    for frame in frames:
        journal.add(frame)
    journal.close()


def test_frames_come_back_and_more_are_added(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    journal = Journal(path, b"job", True)
    assert (len(journal), list(journal.frames())) == (4, FRAMES)
    journal.add(b"more")
    assert list(journal.frames()) == [*FRAMES, b"more"]
    journal.close()
    assert list(Journal(path, b"job", True).frames()) == [*FRAMES, b"more"]
    assert list(Journal(path, b"job", False).frames()) == []


def test_a_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    data = path.read_bytes()
    ends = [len(b"job") + 8]
    for frame in FRAMES:
        ends.append(ends[-1] + 8 + len(frame))
    assert ends[-1] == len(data)
    for size in range(len(data) + 1):
        for tail in (b"", b"\0" * 9, b"\7" * 9):
            path.write_bytes(data[:size] + tail)
            journal = Journal(path, b"job", True)
            kept = max(sum(end <= size for end in ends) - 1, 0)
            assert list(journal.frames()) == FRAMES[:kept]
            journal.add(b"next")
            assert list(journal.frames()) == [*FRAMES[:kept], b"next"]
            journal.close()
            assert Journal(path, b"job", True).path.read_bytes() == path.read_bytes()


def test_another_job(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    with pytest.raises(MismatchError, match="leave out --resume"):
        Journal(path, b"other", True)
    assert list(Journal(path, b"job", True).frames()) == FRAMES


def test_a_journal_of_nothing_goes_away(tmp_path):
    written(tmp_path / "a.partial", [])
    assert list(tmp_path.iterdir()) == []


def test_two_at_a_time_are_told(tmp_path):
    one = Journal(tmp_path / "a.partial", b"job", False)
    one.add(b"frame")
    Journal(tmp_path / "a.partial", b"job", False)
    with pytest.raises(FormatError, match="run one job at a time"):
        list(one.frames())
