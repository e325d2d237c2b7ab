"""artifacts.submission.script: a script sees the files that it is given, and no others."""

from pathlib import Path

import pytest

from artifacts.submission.script import run_script
from codec.console import CheckFailed
from eval.audit import isolation
from eval.audit.sandbox import Limits


def ran(tmp_path, source, **files):
    """Return what a script wrote, beside files of its own."""
    given = {}
    for name, content in {"script.py": source, **files}.items():
        (tmp_path / name).write_text(content)
        given[name] = tmp_path / name
    found = []
    run_script(given, ("script.py", "word"), found.append, Limits(call_seconds=20, memory_bytes=1 << 30))
    return b"".join(found).decode()


def test_a_script_sees_its_files_and_nothing_else(tmp_path):
    (tmp_path / "secret").write_text("the model")
    source = f"""
import os, sys
print(sys.argv[1:], sorted(os.listdir()), os.path.exists({str(tmp_path / "secret")!r}), os.path.exists("/etc/passwd"))
"""
    assert ran(tmp_path, source, more="x") == "['word'] ['more', 'script.py'] False False\n"


def test_a_script_has_no_network(tmp_path):
    source = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError as e: print(e.errno)"
    assert ran(tmp_path, source) == "101\n"  # ENETUNREACH


@pytest.mark.parametrize(
    "source, why",
    [
        ("raise ValueError('what')", "status 1: ValueError: what"),
        ("while True: pass", "over 2 seconds"),
        ("bytes(1 << 32)", "MemoryError"),
        ("import os; os._exit(3)", "status 3: it printed nothing"),
    ],
)
def test_a_script_that_fails(tmp_path, source, why):
    (tmp_path / "script.py").write_text(source)
    limits = Limits(call_seconds=2, memory_bytes=1 << 30)
    with pytest.raises(CheckFailed, match=why):
        run_script({"script.py": tmp_path / "script.py"}, ("script.py",), lambda piece: None, limits)


def test_nothing_runs_where_a_machine_cannot_isolate(tmp_path, monkeypatch):
    """The isolation's own script fails here, as where the kernel grants no namespaces."""
    broken = tmp_path / "isolation.py"
    source = Path(isolation.__file__).read_text()
    broken.write_text(source.replace('_call(libc.unshare(_NEW), "unshare")', "raise OSError('no')"))
    monkeypatch.setattr(isolation, "__file__", str(broken))
    marker = tmp_path / "ran"
    (tmp_path / "script.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(CheckFailed, match=r"cannot isolate a process \(no\)"):
        run_script({"script.py": tmp_path / "script.py"}, ("script.py",), lambda piece: None)
    assert not marker.exists()
