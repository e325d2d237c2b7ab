"""codec.files: a folder is whole or absent, and nothing of anybody else's is replaced."""

import errno
import os
from pathlib import Path

import pytest

from codec.errors import OutputError
from codec.files import atomic_write, check_output, new_folder


@pytest.mark.parametrize("before", ["nothing", "empty", "marked"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_new_folder_is_whole_or_absent(tmp_path, before, error):
    target = tmp_path / "deep" / "x"
    if before != "nothing":
        target.mkdir(parents=True)
    if before == "marked":
        (target / "mark").write_text("earlier")
    kept = sorted(path.name for path in target.parent.iterdir()) if before != "nothing" else []
    with pytest.raises(error), new_folder(target, "mark") as folder:
        (folder / "file").write_text("half")
        raise error
    assert sorted(path.name for path in target.parent.iterdir()) == kept
    assert not (target / "file").exists()
    assert (target / "mark").exists() == (before == "marked")
    with new_folder(target, "mark") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in target.parent.iterdir()] == ["x"]
    assert [path.name for path in target.iterdir()] == ["file"]
    assert target.stat().st_mode == (tmp_path / "deep").stat().st_mode


@pytest.mark.parametrize("replaces", [None, "mark"])
def test_what_is_somebody_elses_stays(tmp_path, replaces):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    for target in (tmp_path / "precious", tmp_path / "precious" / "file"):
        with pytest.raises(OutputError, match="it exists, expected an empty folder"), new_folder(target, replaces):
            raise AssertionError("the block is not entered")
    assert (tmp_path / "precious" / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_replaced(tmp_path, there):
    if there:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(OutputError, match="it exists"), new_folder(tmp_path / "out"):
        raise AssertionError("the block is not entered")
    assert (tmp_path / "out").is_symlink()


INPUTS = ["in", "hard", "link", "sub/../in"]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").write_bytes(b"input")
    (tmp_path / "sub").mkdir()
    os.link(tmp_path / "in", tmp_path / "hard")
    (tmp_path / "link").symlink_to("in")
    return tmp_path


@pytest.mark.parametrize("output", INPUTS)
@pytest.mark.parametrize("force", [True, False])
def test_an_output_is_no_input(folder, output, force):
    with pytest.raises(OutputError, match="it is the input"):
        check_output(folder / output, [folder / "none", folder / "in"], force)


def test_what_is_there_is_replaced_only_with_force(folder):
    (folder / "locked").write_bytes(b"")
    (folder / "locked").chmod(0o444)
    for name, force, message in (
        ("in", False, "there already"),
        ("link", False, "is a link"),
        ("locked", True, "may not be written"),
        ("sub", True, "is a folder"),
        ("", True, "is a folder|name of a file"),
    ):
        with pytest.raises(OutputError, match=message):
            check_output(folder / name, force=force)
    check_output(folder / "in", force=True)
    check_output(folder / "new", force=False)
    check_output("/dev/null", force=False)


def test_modes_links_and_devices(folder, monkeypatch):
    (folder / "private").write_bytes(b"")
    (folder / "private").chmod(0o600)
    for name in ("private", "new", "link"):
        with atomic_write(folder / name) as out:
            out.write(b"content")
    assert (folder / "private").stat().st_mode & 0o777 == 0o600
    assert (folder / "link").is_symlink()
    assert (folder / "in").read_bytes() == b"content"
    with atomic_write("/dev/null") as out:
        out.write(b"content")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(ValueError, match="stop"), atomic_write(folder / "new") as out:
        raise ValueError("stop")
    assert (folder / "new").read_bytes() == b"content"
    assert sorted(path.name for path in folder.iterdir()) == ["hard", "in", "link", "new", "private", "sub"]


def test_a_full_disk_names_the_file(folder):
    with pytest.raises(OSError, match=r"No space left on device: .*new"), atomic_write(folder / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (folder / "new").exists()


def test_names_of_255_bytes(folder):
    with atomic_write(folder / ("n" * 255)) as out:
        out.write(b"content")
    assert (folder / ("n" * 255)).read_bytes() == b"content"
