"""eval.audit.sandbox: what a predictor may do, what it may not, and what becomes of one that misbehaves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from codec.errors import CodecError
from eval.audit import worker
from eval.audit.sandbox import Limits, PredictorError, Program, Sandbox

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


def test_it_is_the_predictor_inside(tmp_path):
    with Sandbox(program(tmp_path, GOOD), 8, QUICK) as sandbox:
        assert not sandbox.peeks
        sandbox.reset(np.array([1, 1]))
        sandbox.update(np.array([3, -1]))
        found = sandbox.distribution()
    assert found.dtype == np.float64
    assert found.argmax(-1).tolist() == [4, 4]


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
    if in_force != worker.NAMESPACE:
        pytest.skip("no network namespaces here; the audit hook is in force")
    assert fails(tmp_path, method("distribution", code)).startswith("RuntimeError: lo: 0 0")


@pytest.mark.parametrize("opener", ["open({0!r}).read()", "__import__('os').open({0!r}, 0)"])
def test_the_text_is_out_of_reach(tmp_path, opener):
    text = tmp_path / "text.txt"
    text.write_text("the text")
    code = f"raise RuntimeError('read ' + repr({opener.format(str(text))}))"
    assert "PermissionError" in fails(tmp_path / "claim", method("distribution", code), hidden=[text])
    assert text.read_text() == "the text"


def test_nothing_is_there_but_its_files(tmp_path):
    code = (
        "import os\nraise RuntimeError(str(sorted(os.listdir('.'))) + os.environ['HOME'] + str('SECRET' in os.environ))"
    )
    os.environ["SECRET"] = "1"
    try:
        message = fails(tmp_path, method("distribution", code))
    finally:
        del os.environ["SECRET"]
    assert "['p.py']" in message.replace("'__pycache__', ", "")
    assert message.endswith("claimFalse")


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


def test_processes_do_not_survive(tmp_path):
    body = method("reset", "import subprocess, sys\nself.rows, self.seen = 1, [1]\n")
    body += "        self.child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n"
    body += method("peek", "raise RuntimeError(str(self.child.pid))")[len(GOOD) :]
    with Sandbox(program(tmp_path, body), 8, QUICK) as sandbox:
        sandbox.reset(np.array([1]))
        with pytest.raises(PredictorError) as raised:
            sandbox.peek([np.array([1])])
    child = Path("/proc") / str(raised.value).removeprefix("RuntimeError: ")
    for _ in range(50):
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"{child} is still there")


def test_without_namespaces_the_hook_stands_alone(tmp_path):
    """The second line, in a process that was refused namespaces."""
    text = tmp_path / "text.txt"
    text.write_text("the text")
    code = f"""
import ctypes, json, socket
from eval import worker
class NoKernel:
    def unshare(self, flags): return -1
ctypes.CDLL = lambda *a, **k: NoKernel()
told = [worker.isolate(1 << 33, [{str(text)!r}])]
for attempt in (socket.socket, lambda: open({str(text)!r})):
    try:
        attempt()
        told.append("allowed")
    except PermissionError as error:
        told.append(str(error))
print(json.dumps(told))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [
        {"network": worker.HOOK, "text": worker.HOOK},
        "a predictor has no network",
        "a predictor has no access to the text it is scored on",
    ]
