"""codec.pack.store: packs by name, path and hash, in the order of the folders."""

import hashlib
from pathlib import Path

import pytest

from codec.errors import FormatError
from codec.pack.store import find, find_hash, packs


@pytest.fixture
def folders(tmp_path):
    for name in ("a/one.pack", "b/one.pack", "b/two.pack", "b/own/er/model.pack", "b/own/x--y/model.pack"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]


def test_names(folders):
    found = {name: path.read_text() for name, path in packs(folders).items()}
    assert found == {"one": "a/one.pack", "two": "b/two.pack", "own/er": "b/own/er/model.pack"}
    assert find("one", folders[1:]).read_text() == "b/one.pack"
    assert find(Path("own/er"), folders) == folders[1] / "own" / "er" / "model.pack"


def test_paths_and_what_is_not_there(folders):
    assert find(folders[1] / "two.pack", []) == folders[1] / "two.pack"
    for name in ("three", "own/x--y", folders[0] / "four.pack"):
        with pytest.raises(FormatError, match=r"neither a file nor one of \['one', 'own/er', 'two'\]"):
            find(name, folders)


def test_hashes(folders):
    assert find_hash(hashlib.sha256(b"b/one.pack").hexdigest(), folders) is None  # hidden by a/one.pack
    assert find_hash(hashlib.sha256(b"b/one.pack").hexdigest(), folders[1:]) == folders[1] / "one.pack"
    assert find_hash(hashlib.sha256(b"other").hexdigest(), folders) is None
