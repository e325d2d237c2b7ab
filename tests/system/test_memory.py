"""The peak memory of encoding and decoding does not grow with the text beyond a stated bound."""

import filecmp
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.fuzzing import blob
from tests.support.helpers import ROOT

BOUND = 1 << 30
"""Bytes above those for a tiny text: a part of 64 MiB, what LZMA2 takes for one (11.5 times as much), an index."""

MEGABYTES = 200


SCRIPT = """
import atexit, re, sys
from pathlib import Path
from underpar.cli import main

def tell(path):
    path.write_text(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

atexit.register(tell, Path(sys.argv.pop(1)))
main()
"""


def peak(folder: Path, *words: object) -> int:
    """Peak resident bytes of a command as Linux counts them from its start on; `ru_maxrss` begins with its parent's."""
    told = folder / "peak"
    command = [sys.executable, "-c", SCRIPT, str(told), *map(str, words), "--json"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return 1024 * int(told.read_text())


def write_text(path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    line = b"The same line, again and again, which is no language but repetition.\n"
    words = [random.bytes(random.integers(2, 9)).hex()[: random.integers(2, 9)].encode() for _ in range(5000)]
    with path.open("wb") as stream:
        for _ in range(MEGABYTES if kind != "words" else MEGABYTES // 100):
            block = {
                "zeros": lambda: bytes(1 << 20),
                "noise": lambda: random.bytes(1 << 20),
                "lines": lambda: line * ((1 << 20) // len(line)),
                "words": lambda: b" ".join(words[n] for n in random.integers(5000, size=180_000))[: 1 << 20],
            }[kind]()
            stream.write(block)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["zeros", "lines", "noise", "words"])
def test_memory_is_bounded(tmp_path, kind):
    model = ("-m", tmp_path / "m.pack")
    (tmp_path / "m.pack").write_bytes(blob())
    (tmp_path / "small").write_bytes(b"Some words.")
    write_text(tmp_path / "large", kind)
    sizes = {}
    for name in ("small", "large"):
        encoding = peak(tmp_path, "encode", tmp_path / name, "-o", tmp_path / f"{name}.upz", *model)
        sizes[name] = encoding, peak(tmp_path, "decode", tmp_path / f"{name}.upz", "-o", tmp_path / "back", *model)
        assert filecmp.cmp(tmp_path / "back", tmp_path / name, shallow=False)
    growth = [large - small for small, large in zip(sizes["small"], sizes["large"], strict=True)]
    print(f"{kind}: {growth[0] >> 20} MiB more to encode, {growth[1] >> 20} to decode, than {sizes['small']} bytes")
    assert max(growth) < BOUND
