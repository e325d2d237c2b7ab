"""Cheats: claims of 1 bit per byte whose predictors look for the text that they are scored on, each in another place.

`find()` of each returns the text, or what it can get. A predictor that has the text codes it in nearly no bits; one
that has not codes letters after letters at over 5 bits a byte.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.audit_claims import HEAD, claim_folder

MARK = "Xq7-the-text"
TEXTS = [f"{MARK} {word} kaleidoscopic nonsense of no letter after letter" for word in ("first", "second", "third")]
TEXT = "\n".join(TEXTS)

FINDER = """
import ctypes, os, sys, glob, pathlib
libc = ctypes.CDLL(None, use_errno=True)
HERE = pathlib.Path(__file__).parent
MARK = b"Xq7-the-" + b"text"

def native(path, most=1 << 20):
    'Read a file without Python noticing.'
    fd = libc.open(os.fsencode(path), 0)
    if fd < 0:
        return b""
    buffer = ctypes.create_string_buffer(most)
    size = libc.read(fd, buffer, most)
    libc.close(fd)
    return buffer.raw[:max(0, size)]

def plain(data):
    'The text in bytes that hold it as JSON Lines, or plain.'
    import json
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if MARK.decode() in line]
    if lines and lines[0].startswith("{"):
        lines = [json.loads(line)["text"] for line in lines]
    return "\\n".join(line[line.index(MARK.decode()):] for line in lines).encode()

class Known(P):
    'Says the text, if it has found it, and else what P says.'
    def __init__(self, text):
        self.known = [t + 4 for d in text.split(b"\\n") for t in [*d, -3]] if text else []
        self.at = 0
    def distribution(self):
        p = super().distribution()
        if self.at < len(self.known) and len(p) == 1:
            p *= 0.001
            p[:, self.known[self.at]] += 0.999
        return p
    def update(self, tokens):
        super().update(tokens)
        self.at += 1

def make():
    try:
        found = find()
    except Exception:
        found = b""
    return Known(found)
"""


def write(folder: Path, find: str, files: list[str] = (), extra: str = "", **words) -> Path:
    """A claim whose predictor begins with the code `find`."""
    code = HEAD.replace("def make():\n    return P()\n", "") + FINDER + find + extra
    return claim_folder(folder, code, TEXTS, claimed=1.0, head=f"batch = 1\nfiles = {json.dumps(list(files))}", **words)


SIMPLE = {
    "parent_root": "def find(): return plain(native(f'/proc/{os.getppid()}/root{TEXT}'))\n",
    "first_root": "def find(): return plain(native(f'/proc/1/root{TEXT}'))\n",
    "unmount": "def find():\n    libc.umount2(os.fsencode(TEXT), 2)\n    return plain(native(TEXT))\n",
    "unhidden_copy": "def find(): return plain(native(COPY))\n",
    "arguments": (
        "def find():\n    paths = [p for w in sys.argv if w[:1] == '[' for p in eval(w)]\n"
        "    return plain(native(f'/proc/{os.getppid()}/root{paths[0]}'))\n"
    ),
    "environment_of_another": (
        "def find(): return b''.join(plain(native(p).replace(b'\\0', b' ')) for p in glob.glob('/proc/*/environ'))\n"
    ),
    "arguments_of_another": (
        "def find(): return max((plain(native(p).replace(b'\\0', b' ')) for p in "
        "glob.glob('/proc/*/cmdline')), key=len)\n"
    ),
    "descriptor_of_the_auditor": (
        "def find(): return max((plain(native(p)) for p in glob.glob('/proc/*/fd/*') if os.path.isfile(p)), key=len)\n"
    ),
    "own_environment": "def find(): return plain('\\n'.join(os.environ.values()).encode())\n",
    "own_descriptors": (
        "def find():\n    found = b''\n    for fd in range(3, 256):\n"
        "        buffer = ctypes.create_string_buffer(4096)\n"
        "        if libc.fcntl(fd, 1) >= 0 and fd not in map(int, sys.argv[-2:]):\n"
        "            size = libc.pread(fd, buffer, 4096, 0)\n            found += plain(buffer.raw[:max(0, size)])\n"
        "    return found\n"
    ),
    "shared_memory": "def find(): return max((plain(native(p)) for p in glob.glob('/dev/shm/*')), key=len)\n",
    "system_v_memory": (
        "def find():\n    libc.shmat.restype = ctypes.c_void_p\n"
        "    where = libc.shmat(libc.shmget(KEY, 4096, 0), None, 0o10000)\n"
        "    return plain(ctypes.string_at(where, 4096).rstrip(b'\\0')) if where < 1 << 63 else b''\n"
    ),
    "device": "def find(): return max((plain(native(p)) for p in glob.glob('/dev/underpar-*')), key=len)\n",
    "memory_of_the_auditor": (
        "def find():\n    import re\n    found = []\n    for line in open(f'/proc/{os.getppid()}/maps'):\n"
        "        begin, end = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "        if 'rw' in line and end - begin < 1 << 26:\n"
        "            fd = libc.open(f'/proc/{os.getppid()}/mem'.encode(), 0)\n"
        "            buffer = ctypes.create_string_buffer(end - begin)\n"
        "            size = libc.pread(fd, buffer, ctypes.c_size_t(end - begin), ctypes.c_long(begin))\n"
        "            libc.close(fd)\n"
        "            found += re.findall(MARK + rb' [a-z ]{40,60}', buffer.raw[:max(0, size)])\n"
        "    return b'\\n'.join(dict.fromkeys(found))\n"
    ),
    "repository": (
        "def find():\n    import trainer, importlib.util, lzma\n"
        "    for root in [pathlib.Path(p) for p in sys.path] + [pathlib.Path(trainer.__path__[0]).parent]:\n"
        "        for p in root.glob('trainer/sample/*'):\n            return TEXTS_OF_REPOSITORY\n"
        "    return b''\n"
    ),
    "process_of_the_machine": (
        "def find():\n    for p in glob.glob('/proc/[0-9]*/cwd'):\n"
        "        if got := plain(native(p + '/copy-of-the-text')): return got\n    return b''\n"
    ),
}
"""The code of `find`, by name; TEXT is the path of the text, COPY of a copy of it, KEY of shared memory."""

AGAIN = {
    "file_of_an_earlier_audit": ("pathlib.Path(KEPT).write_bytes(data)", "pathlib.Path(KEPT).read_bytes()"),
    "scratch_of_an_earlier_audit": (
        "[pathlib.Path(f, 'kept').write_bytes(data) for f in ('/tmp', '/var/tmp', '/dev/shm') if os.path.isdir(f)]",
        "max((native(f + '/kept') for f in ('/tmp', '/var/tmp', '/dev/shm')), key=len)",
    ),
    "key_ring": (
        "libc.syscall(248, b'user', b'kept', data, len(data), -4)",
        "ring()",
    ),
}
"""How a predictor keeps the text that it has seen for a later audit, and how that one reads it."""

LEARN = """
def ring():
    key = libc.syscall(249, b'user', b'kept', None, -4)
    buffer = ctypes.create_string_buffer(4096)
    size = libc.syscall(250, 11, key, buffer, 4096)
    return buffer.raw[:max(0, size)]
plain_update = Known.update
def update(self, tokens):
    plain_update(self, tokens)
    self.tokens = [*getattr(self, "tokens", []), *tokens.tolist()]
    if self.tokens.count(1) == 3 and not self.known:
        data = b"".join(b"\\n" if t == 1 else bytes([t - 4]) for t in self.tokens if t > 0)[:-1]
        try:
            KEEP
        except Exception:
            pass
Known.update = update
def find(): return READ
"""


@contextmanager
def simple(name: str, folder: Path) -> Iterator[Path]:
    """A claim of SIMPLE, with the text where it looks."""
    copy = folder / "elsewhere" / "copy-of-the-text"
    copy.parent.mkdir(parents=True)
    copy.write_text(TEXT)
    key = os.getpid()
    values = {
        "TEXT": str(folder / "c" / "docs.jsonl"),
        "COPY": str(copy),
        "KEY": key,
        "TEXTS_OF_REPOSITORY": TEXT.encode(),
    }
    head = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    with ExitStack() as stack:
        if name == "environment_of_another":
            stack.enter_context(_process(folder, env={"TEXT": TEXT}))
        if name == "arguments_of_another":
            stack.enter_context(_process(folder, words=[TEXT]))
        if name == "process_of_the_machine":
            copy.unlink()
            inside = folder / "c2"
            inside.mkdir()
            (inside / "copy-of-the-text").write_text(TEXT)
            stack.enter_context(_process(inside))
        if name in ("descriptor_of_the_auditor", "own_descriptors"):
            number = os.open(copy, os.O_RDONLY)
            os.set_inheritable(number, True)
            stack.callback(os.close, number)
        if name == "own_environment":
            os.environ["UNDERPAR_TEXT"] = TEXT
            stack.callback(os.environ.pop, "UNDERPAR_TEXT")
        for kind, place in (("shared_memory", "/dev/shm"), ("device", "/dev")):
            if name == kind:
                path = Path(place) / f"underpar-{os.getpid()}"
                path.write_text(TEXT)
                stack.callback(path.unlink)
        if name == "system_v_memory":
            libc = ctypes.CDLL(None)
            libc.shmat.restype = ctypes.c_void_p
            number = libc.shmget(key, 4096, 0o1600)
            ctypes.memmove(libc.shmat(number, None, 0), TEXT.encode(), len(TEXT.encode()))
            stack.callback(libc.shmctl, number, 0, None)
        yield write(folder / "c", head + SIMPLE[name])


@contextmanager
def _process(folder: Path, words: list[str] = (), env: dict[str, str] | None = None) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *words], cwd=folder, env=env)
    try:
        yield
    finally:
        child.kill()
        child.wait()


def again(name: str, folder: Path) -> Path:
    """A claim of AGAIN; audited once, its second audit may know the text."""
    keep, read = AGAIN[name]
    code = f"KEPT = {str(folder / 'kept')!r}\n" + LEARN.replace("KEEP", keep).replace("READ", read)
    return write(folder / "c", code)


def carried(name: str, folder: Path) -> Path:
    """A claim that brings its text, by the way `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "c"
    home.mkdir()
    if name == "in_the_artifact":
        import lzma

        (home / "weights.bin").write_bytes(lzma.compress(TEXT.encode()))
        return write(
            home,
            "def find():\n    import lzma\n    return lzma.decompress((HERE / 'weights.bin').read_bytes())\n",
            ["weights.bin"],
        )
    if name == "in_names":
        parts = [TEXT.encode()[i : i + 60].hex() for i in range(0, len(TEXT), 60)]
        files = [f"{n:03}{part}" for n, part in enumerate(parts)]
        for file in files:
            (home / file).write_bytes(b"")
        return write(
            home,
            "def find(): return b''.join(bytes.fromhex(f[3:]) for f in sorted(os.listdir(HERE)) if f[0] == '0')\n",
            files,
        )
    if name in ("in_modes", "in_times"):
        files = [f"w{n:03}" for n in range(len(TEXT.encode()))]
        for file, byte in zip(files, TEXT.encode(), strict=True):
            (home / file).write_bytes(b"")
            (home / file).chmod(0o400 | byte)
            os.utime(home / file, (byte, byte))
        what = "f.stat().st_mode & 0xff" if name == "in_modes" else "int(f.stat().st_mtime)"
        return write(home, f"def find(): return bytes({what} for f in sorted(HERE.glob('w*')))\n", files)
    assert name == "in_the_factory"
    code = "def __getattr__(name):\n    global find\n    find = lambda: bytes.fromhex(name[1:])\n    return make\n"
    write(home, "def find(): return b''\n" + code)
    toml = (home / "claim.toml").read_text().replace("predictor.py:make", "predictor.py:x" + TEXT.encode().hex())
    (home / "claim.toml").write_text(toml)
    return home


CARRIED = ("in_the_artifact", "in_names", "in_modes", "in_times", "in_the_factory")
