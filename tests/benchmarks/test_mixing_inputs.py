"""What each input of context mixing is worth: bytes and time of solid blocks, with one input planted away at a time.

pytest -s -m benchmark tests/benchmarks/test_mixing_inputs.py

A variant is a copy of the package in which some source lines differ, run in a process with a cache of its own. Machine
code that the variants share is taken from this user's cache.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from codec.cache import cache_folder
from tests.support.helpers import ROOT, shared

BYTES = 50_000
PACK = ROOT / "artifacts" / "models" / "small.pack"
SAME = ("codec.backends", "codec.edits", "codec.entropy", "codec.exact", "codec.pack")
"""Modules whose machine code no variant changes."""

CONTEXTS = {
    "orders 1 to 6": ({1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5}),
    "words": ({7, 8, 10, 12}, set[int]()),
    "lines, columns, shapes": ({11, 13, 14}, set[int]()),
    "bytes above, in records": (set[int](), {6, 7, 8, 9, 11, 13, 14, 18, 19}),
    "sparse and following bytes": (set[int](), {12, 15, 16, 17, 20}),
}
"""Contexts of text and of records that a variant leaves out, by number in `codec.cm.contexts`."""

ENDS = [2, 3, 4, 6, 7, 8, 9]  # of text, those that predict where a token ends

Edit = tuple[str, str, str]  # a file of codec/cm, what is there, what comes in its place

LINES: dict[str, list[Edit]] = {
    "everything": [],
    "matches": [("predictor.py", "        match.follow(s)\n", "")],
    "histories through maps": [("predictor.py", "x[k] = STRETCH[s.maps[m] >> 20]", "x[k] = 0")],
    "refinement (SSE)": [
        ("mixer.py", "p = 2 * np.int64(SQUASH", "p = 4 * np.int64(SQUASH"),
        ("mixer.py", "for i in range(2):", "for i in range(0):"),
    ],
    "weights chosen by contexts": [
        (
            "predictor.py",
            "    return mixer.mix(s)",
            "    sets[:] = np.arange(len(sets)) * SETS\n    return mixer.mix(s)",
        ),
    ],
}


def without(text: set[int], records: set[int]) -> list[Edit]:
    """Return the edits that leave out contexts: those that are left move up."""
    kept = [[k not in text for k in range(24)], [k not in records for k in range(24)]]
    places = np.cumsum(kept[0]) - 1
    ends = [int(places[k]) for k in ENDS if kept[0][k]]
    return [
        (
            "contexts.py",
            "    for i in range(used):\n        s.hashes[i] = mixed(s.hashes[i], i + 1)\n    s.registers[USED] = used",
            "    k = 0\n    for i in range(used):\n        if _KEPT[1 if s.registers[KIND] else 0, i]:\n"
            "            s.hashes[k] = mixed(s.hashes[i], i + 1)\n            k += 1\n    s.registers[USED] = k",
        ),
        ("contexts.py", "_RUNS = 4", f"_RUNS = 4\n_KEPT = np.array({kept})"),
        ("tokens.py", f"_END_CONTEXTS = np.array({ENDS})", f"_END_CONTEXTS = np.array({ends}, np.int64)"),
        ("predictor.py", "_ORDERS = 7", f"_ORDERS = {sum(kept[0][:7])}"),
    ]


VARIANTS = LINES | {name: without(*contexts) for name, contexts in CONTEXTS.items()}


def texts() -> dict[str, bytes]:
    """Return the beginnings of some texts."""

    def documents(path: Path) -> bytes:
        found = b""
        with lzma.open(path) as lines:
            while len(found) < BYTES:
                found += json.loads(next(lines))["text"].encode() + b"\n"
        return found

    data = shared("data")
    files = {
        name: lzma.decompress((data / "corpora" / f"{name}.xz").read_bytes())
        for name in ("alice29.txt", "kennedy.xls", "sum")
    }
    found = {
        **files,
        "raw FineWeb": documents(data / "raw" / "fineweb_pg_verify200.jsonl.xz"),
        "validation": documents(data / "val" / "fineweb_val_head.jsonl.xz"),
        "Wikipedia": documents(data / "train" / "enwiki2.jsonl.xz"),
    }
    for path in map(Path, os.environ.get("TEXTS", "").split()):
        found[path.stem] = path.read_bytes()
    return {name: text[:BYTES] for name, text in found.items()}


def run(folder: Path, edits: list[Edit]) -> dict[str, list[tuple[int, float]]]:
    """Measure a variant in a folder: (bytes, processor seconds) of each text, with the model and without."""
    shutil.copytree(ROOT / "codec", folder / "codec", ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in edits:
        path = folder / "codec" / "cm" / file
        source = path.read_text()
        assert before in source, (file, before)
        path.write_text(source.replace(before, after))
    command = [sys.executable, "-c", MEASURE, str(cache_folder() / "numba"), str(PACK), str(folder / "texts")]
    environment = {**os.environ, "PYTHONPATH": str(folder), "UNDERPAR_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[tuple[int, float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


MEASURE = f"""
import json, shutil, sys, time
from pathlib import Path
from codec.cache import cache_folder
(own := cache_folder() / "numba").mkdir()
for path in Path(sys.argv[1]).iterdir():
    if path.name.startswith({SAME}):
        shutil.copy(path, own)
import codec
from codec.backends.cpu.backend import CpuBackend
from codec.text.open_coder import make_coder
from codec.text.solid import coder as solid, golden
golden.check_once = lambda: None  # the blocks of a variant are other ones
pack = codec.open(sys.argv[2])
coder = make_coder(pack)
coder.__dict__["backend"] = CpuBackend(pack.weights)  # without the self-test
coders = solid.SolidCoder(coder), solid.SolidCoder()
for each in coders:
    each.encode([b"Something, compiled first. " * 9, bytes(range(32)) * 40])
found = {{}}
for path in sorted(Path(sys.argv[3]).iterdir()):
    found[path.name] = []
    for each in coders:
        begin = time.process_time()
        (made,) = each.encode([path.read_bytes()])
        found[path.name].append((len(made[1]), time.process_time() - begin))
print(json.dumps(found))
"""


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_what_each_input_is_worth(tmp_path):
    """Bytes of each text, with the change against everything, and processor seconds of all texts."""
    sources = texts()
    print(f"\n| left out | {' | '.join(sources)} | seconds, all texts |", flush=True)
    for variant, edits in VARIANTS.items():
        folder = tmp_path / variant.replace(" ", "-")
        (folder / "texts").mkdir(parents=True)
        for name, text in sources.items():
            (folder / "texts" / name).write_bytes(text)
        begin = time.perf_counter()
        found = run(folder, edits)
        columns = " | ".join(f"{found[name][0][0]:,} ({found[name][1][0]:,})" for name in sources)
        seconds = [sum(each[n][1] for each in found.values()) for n in range(2)]
        print(f"| {variant} | {columns} | {seconds[0]:.1f} ({seconds[1]:.1f}) |", flush=True)
        print(f"  {time.perf_counter() - begin:.0f} s, compiling included", flush=True)
        shutil.rmtree(folder)
