"""codec.compiled, codec.cache: machine code never outlives its source, and lies where nobody else can write."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from codec import cache
from codec.compiled import _frozen, _thawed, check_once
from codec.errors import CodecError

ROOT = Path(__file__).parents[2]


def run(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a folder, with the environment variables that are given and a PATH alone."""
    environment = {"PATH": os.environ["PATH"], **variables}
    command = [sys.executable, "-B", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


CHECK = "from codec.{room} import golden; golden.check_once()"
MAKE = "from codec.{room} import golden; print({made}.hex())"
TEXT = ("codec/entropy/mixing.py", "_STEP = 18", "_STEP = 17", "text", "golden.encode_record()")
PACK = (
    "codec/entropy/range_coder.py",
    "1 << 48)",
    "1 << 47)",
    "pack",
    "golden.quantized_part(golden._matrices()['by row'])",
)


@pytest.mark.parametrize("case", [TEXT, PACK], ids=["text", "pack"])
@pytest.mark.long
def test_an_edited_constant_of_a_helper_is_noticed(case, tmp_path):
    """With the machine code of the source before the edit and with none alike; without the check bytes change alike."""
    file, before, after, room, made = case
    shutil.copytree(ROOT / "codec", tmp_path / "codec", ignore=shutil.ignore_patterns("__pycache__"))
    old, empty = (str(tmp_path / name) for name in ("old", "empty"))
    right = run(tmp_path, MAKE.format(room=room, made=made), UNDERPAR_CACHE=old)
    assert right.returncode == 0, right.stderr
    assert run(tmp_path, CHECK.format(room=room), UNDERPAR_CACHE=old).returncode == 0
    source = (tmp_path / file).read_text()
    assert source.count(before) == 1
    (tmp_path / file).write_text(source.replace(before, after))
    found = []
    for folder in (old, empty):
        refused = run(tmp_path, CHECK.format(room=room), UNDERPAR_CACHE=folder)
        assert refused.returncode == 1
        assert "CodecError: golden record of" in refused.stderr
        found.append(run(tmp_path, MAKE.format(room=room, made=made), UNDERPAR_CACHE=folder).stdout)
    assert found[0] == found[1] != right.stdout


FAULTS = {
    "codec.entropy.range_coder": {"_MASK": "numpy.uint64((1 << 55) - 1)"},
    "codec.entropy.adaptive_bit": {"_RECIPROCALS": "module._RECIPROCALS - 5"},
    "codec.entropy.mixing": {"_STEP": "17", "_HALF": "0"},
    "codec.edits.model": {"_priors": "untrained"},
    "codec.edits.contexts": {"_AHEAD": "4", "_QUOTE": "8", "_LINES": "2"},
    "codec.edits.align": {"_AGREE": "3"},
    "codec.edits.coder": {"_EDITED": "{True: 1 << 14}"},
    "codec.entropy.adaptive_table": {"INCREMENT": "33"},
    "codec.cm.mixer": {"_RATE": "27", "_FINAL_STEP": "17", "_REMEMBERED": "250"},
    "codec.cm.slots": {"_MOST": "200", "_FIRST_SHIFT": "numpy.uint64(28)"},
    "codec.cm.match": {"LEAST": "numpy.array([5, 14])", "_LONGEST": "60"},
    "codec.cm.contexts": {"_RUNS": "3", "_SHAPES": "module._SHAPES ^ 1"},
    "codec.pack.parts.context_coder": {"_REFRESH": "15", "_PRIOR_ROWS": "9", "_MEMORY": "8"},
    "codec.quantization.trellis": {"CODES": "{8: (0o11, 0o04)}"},
}
"""Values of constants, by module and name, that change what is coded."""

PLANT = """
import numpy
from importlib import import_module
from codec.text import golden as text
from codec.pack import golden as pack
from codec.text.solid import golden as blocks
pack.check.__wrapped__(), text.check.__wrapped__(), blocks.check()
for name, values in {faults}.items():
    module = import_module(name)
    for constant, value in values.items():
        right = getattr(module, constant)
        wrong = eval(value) if value != "untrained" else lambda: (a := module.untrained())[:1] + tuple(a[1])
        setattr(module, constant, wrong)
        for held in list(vars(module).values()):
            getattr(held, "cache_clear", int)()  # what was made of the constant before
        try:
            pack.check.__wrapped__(), text.check.__wrapped__(), blocks.check()
            print("missed:", name, constant)
        except Exception as error:
            print(type(error).__name__, name, constant)
        setattr(module, constant, right)
"""


@pytest.mark.long
def test_golden_records_depend_on_constants():
    """Uncompiled, where a constant that changes is read anew; the bytes are those of compiled code."""
    done = run(ROOT, PLANT.format(faults=FAULTS), NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == sum(map(len, FAULTS.values()))
    assert not [line for line in found if line.startswith("missed")]


@pytest.mark.long
def test_golden_records_uncompiled():
    code = "from codec.text import golden as t; from codec.pack import golden as p; p.check(); t.check(); "
    code += "from codec.text.solid import golden; golden.check()"
    done = run(ROOT, code, NUMBA_DISABLE_JIT="1", PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_the_coder_of_edits_is_compiled_once(tmp_path):
    """Functions of its loop have one version each; a counter that begins as a literal would make a second version."""
    code = "from codec.text import golden; golden.check(); from codec.edits import coder, contexts; "
    code += "print(len(coder._decide_entry.overloads), len(contexts.look.overloads), len(coder._room.overloads))"
    done = run(ROOT, code, UNDERPAR_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "1 1 1\n"), done.stderr


def test_a_check_that_passed_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    runs = []

    def fails() -> None:
        runs.append(1)
        raise CodecError("other bytes")

    for _ in range(2):
        check_once("right", lambda: runs.append(1))
    assert len(runs) == 1
    for _ in range(2):
        with pytest.raises(CodecError, match="other bytes"):
            check_once("wrong", fails)
    assert len(runs) == 3


BESIDE = """
import os
from codec import compiled

def check():
    assert os.environ["FIRST"] != str(os.getpid()), "checked by the first process"
    assert os.environ["FIRST"] != "none", "fails everywhere"

def check_once():
    compiled.check_once("beside", check)
"""


@pytest.mark.parametrize("passes", [True, False])
def test_a_check_is_run_by_another_process_and_waited_for(passes, tmp_path):
    """This process runs the check itself where the other one did not pass it."""
    (tmp_path / "beside.py").write_text(BESIDE)
    code = f"""
import os
os.environ["FIRST"] = str(os.getpid()) if {passes} else "none"
import beside
from codec import compiled
compiled.processors = lambda: 2
compiled.check_beside(beside="beside")
beside.check_once()
print("held")
"""
    done = run(tmp_path, code, UNDERPAR_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
    assert ("held" in done.stdout) == passes, done.stderr
    assert ("AssertionError: fails everywhere" in done.stderr) != passes


FUNCTIONS = """
import numpy
from codec.compiled import making

@making
def inner(a):
    b = numpy.empty(len(a), a.dtype)
    for n in range(len(a)):
        b[n] = 3 * a[n] + 1
    return b

@making
def outer(a):
    total = 0
    for value in inner(inner(a)):
        total += value
    return total
"""


def test_loaded_code_serves_python_and_new_callers(tmp_path):
    """What only compiling needs is imported by a process that compiles, and not by one that loads."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    inner, outer = "functions.inner(numpy.arange(5))", "functions.outer(numpy.arange(5))"
    registry = "'numba.np.linalg' in sys.modules"
    found = []
    for calls in ((inner, registry), (inner, registry), (inner, outer, registry), (outer, inner, registry)):
        code = f"import functions, numpy, sys; print({', '.join(f'str({call})' for call in calls)}, sep='|')"
        done = run(tmp_path, code, UNDERPAR_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.strip().split("|"))
    values, total = "[ 1  4  7 10 13]", str(sum(3 * (3 * n + 1) + 1 for n in range(5)))
    assert found == [
        [values, "True"],
        [values, "False"],
        [values, total, "True"],
        [total, values, "False"],
    ]


def test_versions_are_those_of_the_metadata():
    for name in ("numba", "llvmlite", "numpy", "torch"):
        assert cache.version(name) == metadata.version(name)
    assert cache.version("no-such-package") is None


WHERE = "from codec.cache import cache_folder; print(cache_folder().parent)"


def test_the_variable_says_where(tmp_path):
    found = run(ROOT, WHERE, UNDERPAR_CACHE=str(tmp_path / "here"), HOME=str(tmp_path)).stdout.strip()
    assert found == str(tmp_path / "here")
    assert (tmp_path / "here").stat().st_mode & 0o777 == 0o700


def test_the_users_cache_folder_is_taken(tmp_path):
    assert run(ROOT, WHERE, HOME=str(tmp_path)).stdout.strip() == str(tmp_path / ".cache" / "underpar")
    found = run(ROOT, WHERE, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "x")).stdout.strip()
    assert found == str(tmp_path / "x" / "underpar")


def test_without_a_home_the_temporary_folder_is_taken(tmp_path):
    found = run(ROOT, WHERE, HOME="/nonexistent", TMPDIR=str(tmp_path)).stdout.strip()
    assert found == str(tmp_path / f"underpar-{os.getuid()}")


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_what_others_can_write_is_not_trusted(tmp_path, trap):
    """A name that somebody else has taken in the temporary folder: a link, a folder that all can write, a file."""
    name, other = tmp_path / f"underpar-{os.getuid()}", tmp_path / "other"
    other.mkdir()
    if trap == "link":
        name.symlink_to(other)
    elif trap == "open":
        name.mkdir()
        name.chmod(0o777)
    else:
        name.write_text("")
    found = Path(run(ROOT, WHERE.replace(".parent", ""), HOME="/nonexistent", TMPDIR=str(tmp_path)).stdout.strip())
    assert found.parent == tmp_path
    assert found.name.startswith("underpar-")
    assert found != name
    assert not found.exists()  # removed at the end
    assert not list(other.iterdir())


def test_a_named_folder_that_others_can_write_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    with pytest.raises(CodecError, match=f"{cache.VARIABLE}=.*nobody else can write"):
        cache.cache_folder.__wrapped__()


def test_old_hashes_go(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    tmp_path.chmod(0o700)
    for n in range(12):
        (tmp_path / f"{n:032x}").mkdir()
        os.utime(tmp_path / f"{n:032x}", (n, n))
    (tmp_path / "notes").mkdir()
    folder = cache.cache_folder.__wrapped__()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {folder.name, "notes", *(f"{n:032x}" for n in range(12 - cache._KEPT + 1, 12))}


def test_kept_bytes_that_are_damaged_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    made = []

    def make() -> bytes:
        made.append(1)
        return b"table"

    assert cache.kept("tables/t", make) == cache.kept("tables/t", make) == b"table"
    assert len(made) == 1
    data = bytearray((tmp_path / "tables" / "t").read_bytes())
    data[-1] ^= 1
    (tmp_path / "tables" / "t").write_bytes(data)
    assert cache.kept("tables/t", make) == cache.kept("tables/t", make) == b"table"
    assert len(made) == 2


def test_a_processor_codes_without_torch():
    """All modules that encode and decode files on a processor; the reference is imported for the self-test alone."""
    modules = (
        "codec.archive.encode_files, codec.archive.decode_files, codec.backends.cpu.backend, codec.backends.select"
    )
    done = run(ROOT, f'import sys, {modules}; print([name for name in ("torch", "matplotlib") if name in sys.modules])')
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_environments_out_of_the_cache_are_cached_again():
    """A function that takes in a function of the cache needs the environments of both where it is loaded."""
    found = _thawed("_ZN08NumbaEnvE_of_a_test", [1, "two"])
    assert found.can_cache()
    assert _frozen(found) == ("_ZN08NumbaEnvE_of_a_test", [1, "two"])
    assert _thawed("_ZN08NumbaEnvE_of_a_test", []) is found
