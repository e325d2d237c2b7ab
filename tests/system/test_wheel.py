"""The wheel: built from the tree, installed into an empty environment, it has every module and runs the demo."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

ROOMS = ("codec", "trainer", "eval", "artifacts", "underpar")

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command outside the checkout, without this process's Python path; fail with all that it printed."""
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """The variables of a user who has only the wheel: no path to the checkout, a home and a cache of their own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "UNDERPAR", "VIRTUAL"))}
    return {**kept, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(folder):
    """The wheel of a copy of the tree: building leaves folders behind."""
    tree = folder / "tree"
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", tree, folder=folder)
    (built,) = (folder / "dist").glob("underpar-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(folder, wheel):
    """The programs of a new environment that has the wheel and what the wheel asks for, nothing else."""
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", wheel, folder=folder)
    return programs


def test_the_wheel_has_every_module_and_every_file_of_data(wheel):
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    expected = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    for package, patterns in kept.items():
        place = ROOT.joinpath(*package.split("."))
        files = [path for path in place.rglob("*") if path.is_file()]
        for pattern in patterns:
            found = {p.relative_to(ROOT).as_posix() for p in files if fnmatch(p.relative_to(place).as_posix(), pattern)}
            assert found, f"no file of {package} is named like {pattern}"
            expected |= found
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert names == expected


IMPORT_ALL = """
import importlib, pkgutil, sys
count = 0
for room in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        if not module.name.startswith(("codec.backends.cuda.", "trainer.kernels.")) and "__main__" not in module.name:
            importlib.import_module(module.name)
            count += 1
print(count, sys.modules["codec"].__file__)
"""
"""Import everything but Triton kernels, which need a build of PyTorch that brings Triton along."""


def test_every_module_can_be_imported_without_the_checkout(folder, programs):
    count, place = run(programs / "python", "-c", IMPORT_ALL, *ROOMS, folder=folder).split()
    assert int(count) > 200
    assert Path(place).is_relative_to(folder / "env")


def test_files_are_coded_with_the_pack_in_the_wheel(folder, programs):
    (folder / "notes.txt").write_bytes(b"A language model is the probability source of an arithmetic coder.\n" * 9)
    run(programs / "underpar", "encode", "notes.txt", folder=folder)
    run(programs / "underpar", "decode", "notes.txt.upz", "-o", "back.txt", folder=folder)
    assert (folder / "back.txt").read_bytes() == (folder / "notes.txt").read_bytes()


def test_the_demo_proves_the_pack_and_begins_to_train(folder, programs):
    """The demo is interrupted in its training, whose length says nothing about a wheel."""
    lines = []
    with subprocess.Popen(
        [programs / "underpar", "demo"], cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr
        for line in demo.stderr:
            lines.append(line)
            if line.startswith("Training a model of your own"):
                demo.send_signal(signal.SIGINT)
    said = "".join(lines)
    assert "every byte is the same" in said
    assert demo.returncode == 130, said
    assert not (folder / "demo").exists()
