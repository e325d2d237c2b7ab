"""eval.audit.sandbox: what a predictor may do, what it may not, and what becomes of one that misbehaves."""

import ast
import os
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import eval.audit.sandbox as sandbox_module
from codec.errors import CodecError
from eval.audit import isolation
from eval.audit.sandbox import Limits, PredictorError, Program, Sandbox
from eval.imports import PACKAGES

QUICK = Limits(call_seconds=20, total_seconds=60)

GOOD = """
class P:
    def reset(self, documents): self.rows, self.seen = len(documents), documents.tolist()
    def update(self, tokens): self.seen += tokens.tolist()
    def distribution(self):
        import numpy as np
        p = np.zeros((self.rows, 8)); p[:, sum(self.seen) % 8] = 1
        return p
"""


def program(folder, body, hidden=()):
    """A claim's code: `body` is the source of a class P, or of what replaces it."""
    folder.mkdir(exist_ok=True)
    (folder / "p.py").write_text(f"{body}\n\ndef make():\n    return P()\n")
    return Program("p.py:make", [folder / "p.py"], hidden)


def method(name, code):
    """GOOD, but its method `name` runs `code`."""
    body = "\n".join(f"        {line}" for line in code.splitlines())
    return GOOD + f"\n    def {name}(self, *arguments):\n{body}\n"


def fails(folder, body, limits=QUICK, hidden=()):
    """The message of the error that a predictor ends with in one step."""
    with pytest.raises(PredictorError) as raised, Sandbox(program(folder, body, hidden), 8, limits) as sandbox:
        sandbox.reset(np.array([1]))
        sandbox.update(np.array([2]))
        sandbox.distribution()
    return str(raised.value)


@pytest.fixture
def isolated(tmp_path_factory):
    """Skip where the kernel grants no namespaces."""
    with Sandbox(program(tmp_path_factory.mktemp("probe"), GOOD), 8) as sandbox:
        if sandbox.isolation["text"] != isolation.ROOT:
            pytest.skip(f"no private root on this machine: {sandbox.isolation['reason']}")


def test_it_is_the_predictor_inside(tmp_path):
    with Sandbox(program(tmp_path, GOOD), 8, QUICK) as sandbox:
        assert not sandbox.peeks
        sandbox.reset(np.array([1, 1]))
        sandbox.update(np.array([3, -1]))
        found = sandbox.distribution()
    assert found.dtype == np.float64
    assert found.argmax(-1).tolist() == [4, 4]


def test_libraries_below_the_temporary_folder(tmp_path, isolated, monkeypatch):
    """An environment may lie in /tmp: its packages are seen there, and nothing beside them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        packages = Path(folder) / "venv" / "site-packages"
        packages.mkdir(parents=True)
        (packages / "of_this_environment.py").write_text("x = 6")
        (packages.parent / "text").write_text("secret")
        monkeypatch.syspath_prepend(packages)
        look = f"import os, of_this_environment as o\nself.seen = [o.x * (os.listdir({str(packages.parent)!r}) == "
        body = method("reset", look + "['site-packages'])]\nself.rows = 1")
        with Sandbox(program(tmp_path, body), 8, QUICK) as sandbox:
            sandbox.reset(np.array([1]))
            assert sandbox.distribution().argmax() == 6


def test_peek_hands_over_documents(tmp_path):
    body = method("peek", "self.seen = [len(d) for d in arguments[0]] + [int(sum(map(sum, arguments[0])))]")
    with Sandbox(program(tmp_path, body), 8, QUICK) as sandbox:
        assert sandbox.peeks
        sandbox.reset(np.array([0, 0, 0]))
        sandbox.peek([np.array([1, 2]), np.array([], np.int64), np.array([4])])
        assert sandbox.distribution()[0].argmax() == (2 + 0 + 1 + 7) % 8


def test_large_messages_pass_both_ways(tmp_path):
    body = GOOD.replace("np.zeros((self.rows, 8))", "np.zeros((self.rows, 5000))")
    with Sandbox(program(tmp_path, body), 5000, QUICK) as sandbox:
        sandbox.reset(np.zeros(100, np.int64))
        assert sandbox.distribution().shape == (100, 5000)
        sandbox.reset(np.zeros(100_000, np.int64))


def test_an_exception_is_named(tmp_path):
    assert fails(tmp_path, method("distribution", "raise KeyError('no such thing')")) == "KeyError: 'no such thing'"
    assert "ValueError: late" in fails(tmp_path, method("update", "raise ValueError('late')"))
    assert "ZeroDivisionError" in fails(tmp_path, "1 / 0")


def test_a_factory_that_is_not_there(tmp_path):
    with pytest.raises(PredictorError, match="has no attribute 'other'"):
        Sandbox(Program("p.py:other", program(tmp_path, GOOD).files), 8, QUICK)


def test_a_process_that_dies(tmp_path):
    message = fails(tmp_path, method("distribution", "import os, sys\nprint('last words', flush=True)\nos._exit(7)"))
    assert "ended with status 7" in message
    assert "last words" in message


@pytest.mark.parametrize(
    "answer, shape",
    [("np.ones((1, 7))", "[1, 7]"), ("np.ones((2, 8))", "[2, 8]"), ("np.ones((8, 1))", "[8, 1]")],
)
def test_a_distribution_of_another_shape(tmp_path, answer, shape):
    message = fails(tmp_path, method("distribution", f"import numpy as np\nreturn {answer}"))
    if shape == "[2, 8]":  # more bytes than there may be are not even read
        assert "answered" in message or shape in message
    else:
        assert shape in message
        assert "expected [1, 8]" in message


def test_what_is_printed_does_not_disturb(tmp_path):
    with Sandbox(
        program(tmp_path, method("reset", "print('x' * 100_000); self.rows, self.seen = 1, [1]")), 8
    ) as sandbox:
        sandbox.reset(np.array([1]))
        assert sandbox.distribution().argmax() == 1


def test_time_is_limited(tmp_path):
    begin = time.monotonic()
    message = fails(tmp_path, method("distribution", "while True: pass"), Limits(call_seconds=1.5, total_seconds=60))
    assert message == "it used up its time, 1.5 a call"
    message = fails(tmp_path, method("distribution", "import time; time.sleep(60)"), Limits(60, total_seconds=2))
    assert message == "it used up its time, 2 seconds in all"
    assert time.monotonic() - begin < 30


def test_loading_is_limited_too(tmp_path):
    assert "used up its time" in fails(tmp_path, "import time; time.sleep(60)", Limits(1.0, 60))


def test_memory_is_limited(tmp_path):
    greedy = method("distribution", "import numpy as np\nx = np.ones(1 << 28)\nreturn np.ones((1, 8))")
    assert "MemoryError" in fails(tmp_path, greedy, Limits(20, 60, memory_bytes=1 << 30))


def test_there_is_no_network(tmp_path):
    connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), 2)"
    assert "PermissionError" in fails(tmp_path, method("distribution", connect))


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="needs Linux")
def test_the_namespace_has_no_interface_that_is_up(tmp_path):
    """Where the kernel grants a namespace, native code has no network either."""
    code = "raise RuntimeError(' '.join(open('/proc/net/dev').read().split()[-17:]))"
    with Sandbox(program(tmp_path, GOOD), 8) as sandbox:
        in_force = sandbox.isolation["network"]
    if in_force != isolation.NAMESPACE:
        pytest.skip("no network namespaces here; the audit hook is in force")
    assert fails(tmp_path, method("distribution", code)).startswith("RuntimeError: lo: 0 0")


@pytest.mark.parametrize("opener", ["open({0!r}).read()", "__import__('os').open({0!r}, 0)"])
def test_the_text_is_out_of_reach(tmp_path, opener):
    text = tmp_path / "text.txt"
    text.write_text("the text")
    code = f"raise RuntimeError('read ' + repr({opener.format(str(text))}))"
    message = fails(tmp_path / "claim", method("distribution", code), hidden=[text])
    assert message.startswith(("FileNotFoundError", "PermissionError"))
    assert text.read_text() == "the text"


def test_nothing_is_there_but_its_files(tmp_path, isolated):
    code = """
import os, sys
found = {name: sorted(os.listdir(name)) for name in (".", "/", "/dev", "/tmp", "/modules", "/modules/trainer")}
found["environment"], found["arguments"] = dict(os.environ), sys.argv
raise RuntimeError(repr(found))"""
    os.environ["SECRET"] = "1"
    try:
        message = fails(tmp_path, method("distribution", code))
    finally:
        del os.environ["SECRET"]
    found = ast.literal_eval(message.removeprefix("RuntimeError: "))
    assert found["."] == ["p.py"]
    assert found["/dev"] == ["null", "urandom", "zero"]
    assert found["/tmp"] == []
    assert not {"root", "home", "var", "mnt", "sys", "run", "old"} - {sys.base_prefix.split("/")[1]} & set(found["/"])
    assert found["/modules"] == ["codec", "eval", "trainer"]
    assert "sample" not in found["/modules/trainer"]
    assert not {"SECRET", "PWD", "OLDPWD"} & set(found["environment"])
    assert str(tmp_path) not in repr(found)


def test_what_the_copies_keep_is_names_and_bytes(tmp_path):
    """Modes and times of files would be bits that nobody counts."""
    told = "[(f.name, f.stat().st_mode & 0o777, f.stat().st_mtime) for f in os.scandir('.')]"
    code = f"import os\nraise RuntimeError(repr({told}))"
    one = program(tmp_path, method("distribution", code))
    (tmp_path / "p.py").chmod(0o741)
    os.utime(tmp_path / "p.py", (1, 12345))
    with pytest.raises(PredictorError) as raised, Sandbox(one, 8, QUICK) as sandbox:
        sandbox.reset(np.array([1]))
        sandbox.distribution()
    assert str(raised.value) == "RuntimeError: [('p.py', 420, 0.0)]"


def test_it_has_no_rights(tmp_path, isolated):
    told = "[line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNewPrivs'))]"
    code = f"raise RuntimeError(repr({told}))"
    found = ast.literal_eval(fails(tmp_path, method("distribution", code)).removeprefix("RuntimeError: "))
    assert {int(line.split()[1], 16) for line in found if line.startswith("Cap")} == {0}
    assert "NoNewPrivs:\t1\n" in found


def test_it_cannot_make_namespaces_of_its_own(tmp_path, isolated):
    code = "import ctypes\nraise RuntimeError(str(ctypes.CDLL(None).unshare(0x10000000)))"
    assert fails(tmp_path, method("distribution", code)) == "RuntimeError: -1"


@pytest.mark.parametrize("folder", ["/claim", "/modules", "/", "/dev", "/usr/lib"])
def test_nothing_but_the_scratch_folder_can_be_written(tmp_path, isolated, folder):
    code = f"open({folder!r} + '/new', 'w')"
    assert fails(tmp_path, method("distribution", code)).startswith("OSError: [Errno 30] Read-only")


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "p.py").write_text("")
    one = program(tmp_path, GOOD)
    with pytest.raises(CodecError, match=r"two of its files are called p\.py"):
        Sandbox(Program(one.factory, [*one.files, tmp_path / "a" / "p.py"]), 8, QUICK)


@pytest.mark.parametrize(
    "answer",
    [
        b"x" + (5).to_bytes(4, "little") + b"abcde",  # no such status
        b"k" + (1 << 31).to_bytes(4, "little"),  # two gigabytes
        b"k" + (3).to_bytes(4, "little") + b"abc",  # too short for a shape
    ],
)
def test_nonsense_on_the_pipe_is_an_error(tmp_path, answer):
    """A predictor that takes over its process can write what it likes; nothing of it is unpickled or believed."""
    code = f"import os, sys\nos.write(int(sys.argv[-1]), {answer!r})\nos._exit(0)"
    message = fails(tmp_path, method("distribution", code))
    assert "answered" in message or "shape []" in message


def test_a_process_that_says_nonsense_at_the_start(tmp_path):
    hello = b"k" + (4).to_bytes(4, "little") + b"[1]\n"
    message = fails(tmp_path, f"import os, sys\nos.write(int(sys.argv[-1]), {hello!r})\nos._exit(0)")
    assert "nothing sensible" in message


@pytest.mark.parametrize("start_new_session", [False, True])
def test_processes_do_not_survive(tmp_path, isolated, start_new_session):
    """A child that left the process group goes with the namespace; the test finds it by its last argument."""
    mark = f"mark-{os.getpid()}-{start_new_session}"
    body = method(
        "reset",
        "import subprocess, sys\nself.rows, self.seen = 1, [1]\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', {mark!r}], "
        f"start_new_session={start_new_session})",
    )

    def alive():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                found += [process] if words[-2:-1] == [mark.encode()] else []
        return found

    with Sandbox(program(tmp_path, body), 8, QUICK) as sandbox:
        sandbox.reset(np.array([1]))
        wait_for(alive)
    wait_for(lambda: not alive())


def wait_for(found):
    for _ in range(100):
        if found():
            return
        time.sleep(0.1)
    pytest.fail("waited for 10 seconds")


def test_what_is_installed_beside_this_project_is_seen(tmp_path, monkeypatch):
    """Installed in an environment, whose folder of the interpreter's library is above the folder of packages."""
    packages = tmp_path / "env" / "lib" / "python3" / "site-packages"
    for name in (*PACKAGES, "numpy"):
        (packages / name).mkdir(parents=True)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setattr(sandbox_module, "ROOT", packages)
    paths = {"stdlib": sysconfig.get_path("stdlib"), "platstdlib": str(packages.parent)}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    folder = tmp_path / "folder"
    folder.mkdir()
    plan = sandbox_module.plan_of(folder, [], 1 << 30, [], 0)
    assert [str(packages.parent)] * 2 in plan.seen
    assert plan.covered == sorted(str(packages / name) for name in PACKAGES)


def test_without_namespaces_the_hook_stands_alone(tmp_path, monkeypatch):
    """The second line, where the kernel refuses: here the plan asks for what no kernel has."""
    text = tmp_path / "text.txt"
    text.write_text("the text")
    plan = sandbox_module.plan_of
    monkeypatch.setattr(sandbox_module, "plan_of", lambda *a: plan(*a)._replace(seen=[["/nowhere", "/nowhere"]]))
    with Sandbox(program(tmp_path, GOOD), 8, QUICK) as sandbox:
        assert sandbox.isolation["network"] == sandbox.isolation["text"] == isolation.HOOK
        assert "mount" in sandbox.isolation["reason"]
        sandbox.reset(np.array([3]))
        assert sandbox.distribution().argmax() == 3
    connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), 2)"
    assert "a predictor has no network" in fails(tmp_path, method("distribution", connect))
    message = fails(tmp_path, method("distribution", f"open({str(text)!r})"), hidden=[text])
    assert "no access to the text it is scored on" in message
