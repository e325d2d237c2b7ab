"""codec.files: a folder is whole or absent, and nothing of anybody else's is replaced."""

import pytest

from codec.errors import FormatError
from codec.files import new_folder


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
        with pytest.raises(FormatError, match="it exists, expected an empty folder"), new_folder(target, replaces):
            raise AssertionError("the block is not entered")
    assert (tmp_path / "precious" / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_replaced(tmp_path, there):
    if there:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(FormatError, match="it exists"), new_folder(tmp_path / "out"):
        raise AssertionError("the block is not entered")
    assert (tmp_path / "out").is_symlink()
