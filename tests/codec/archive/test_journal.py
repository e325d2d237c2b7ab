"""codec.archive.journal: whole frames survive whatever happened to the end of the file, and nothing else is touched."""

import fcntl

import pytest

from codec.archive.journal import Journal
from codec.errors import CodecError, FormatError, MismatchError

FRAMES = [b"first", b"1", b"\5" * 100, b"UPZ"]


def written(path, frames=FRAMES):
    journal = Journal(path, b"job", False)
    for frame in frames:
        journal.add(frame)
    journal.close()


def frames_of(path) -> list[bytes]:
    journal = Journal(path, b"job", True)
    found = list(journal.frames())
    journal.close()
    return found


def test_frames_come_back_and_more_are_added(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    journal = Journal(path, b"job", True)
    assert (len(journal), list(journal.frames())) == (4, FRAMES)
    journal.add(b"more")
    assert list(journal.frames()) == [*FRAMES, b"more"]
    journal.close()
    assert frames_of(path) == [*FRAMES, b"more"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_work_is_not_lost_unless_told_to(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    with pytest.raises(MismatchError, match="go on with --resume, or begin again with --force"):
        Journal(path, b"job", False)
    assert frames_of(path) == FRAMES
    Journal(path, b"job", False, force=True).close()
    assert not path.exists()


def test_a_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    data = path.read_bytes()
    ends = [4 + len(b"job") + 8]
    for frame in FRAMES:
        ends.append(ends[-1] + 8 + len(frame))
    assert ends[-1] == len(data)
    for size in range(len(data) + 1):
        for tail in (b"", b"\0" * 9, b"\7" * 9):
            path.write_bytes(data[:size] + (tail if size > 4 else b""))
            journal = Journal(path, b"job", True)
            kept = max(sum(end <= size for end in ends) - 1, 0)
            assert list(journal.frames()) == FRAMES[:kept]
            journal.add(b"next")
            assert list(journal.frames()) == [*FRAMES[:kept], b"next"]
            journal.close()
            assert frames_of(path) == [*FRAMES[:kept], b"next"]


def test_another_job(tmp_path):
    path = tmp_path / "a.partial"
    written(path)
    with pytest.raises(MismatchError, match="begin again with --force"):
        Journal(path, b"other", True)
    assert frames_of(path) == FRAMES


def test_a_journal_of_nothing_goes_away(tmp_path):
    written(tmp_path / "a.partial", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_journal_is_left_alone(tmp_path, resume, force):
    victim = tmp_path / "victim"
    for kind in ("text", "link", "folder", "dangling"):
        path = tmp_path / f"{kind}.partial"
        victim.write_bytes(b"precious")
        if kind == "text":
            path.write_bytes(b"precious")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(victim if kind == "link" else tmp_path / "nothing")
        with pytest.raises(FormatError, match="in the way and no journal of ours"):
            Journal(path, b"job", resume, force)
        assert victim.read_bytes() == b"precious"
        assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "text.partial").read_bytes() == b"precious"


def test_one_job_at_a_time(tmp_path):
    one = Journal(tmp_path / "a.partial", b"job", False)
    one.add(b"frame")
    for force in (False, True):
        with pytest.raises(CodecError, match="another process is at this job"):
            Journal(tmp_path / "a.partial", b"job", False, force)
    assert list(one.frames()) == [b"frame"]
    (tmp_path / "a.partial").write_bytes(b"other")
    with pytest.raises(FormatError, match="run one job at a time"):
        list(one.frames())


def test_a_journal_that_was_removed_before_it_was_locked(tmp_path, monkeypatch):
    """Another job ends between opening and locking: the lock of a file without a name keeps nobody out."""
    path = tmp_path / "a.partial"
    other, plain = Journal(path, b"job", False), fcntl.flock

    def flock(stream, how):
        monkeypatch.setattr(fcntl, "flock", plain)
        other.remove()
        plain(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = Journal(path, b"job", False)
    journal.add(b"frame")
    with pytest.raises(CodecError, match="another process is at this job"):
        Journal(path, b"job", True)
    journal.close()
    assert frames_of(path) == [b"frame"]
