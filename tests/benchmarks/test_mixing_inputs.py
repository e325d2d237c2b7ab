"""Measure what each input of context mixing is worth and costs: bytes and time of solid blocks without one at a time.

pytest -s -m benchmark tests/benchmarks/test_mixing_inputs.py

A copy of the package, in which some source lines differ and inputs can be left out, runs in a process with a cache of
its own. Machine code of other modules is taken from this user's cache. Where bytes are counted, contexts that are left
out are still looked up, so that the other contexts keep their maps; where time is measured, they are not.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codec.cache import cache_folder
from tests.support.helpers import ROOT, shared

BYTES = 30_000
PACK = ROOT / "artifacts" / "models" / "small.pack"
SAME = ("codec.backends", "codec.edits", "codec.entropy", "codec.exact", "codec.pack")
"""Modules whose machine code is that of the package."""

TEXT, RECORDS, MATCHES, MAPS, REFINED, SELECTED, TIMED = 30, 54, 78, 79, 80, 81, 82
"""Registers beyond those of the package; one that is not 0 leaves out an input: a context of text or of records (24
each, as numbered in `codec.cm.contexts`), matches, and so on. TIMED leaves out the look-ups of those contexts, too."""

VARIANTS: dict[str, list[int]] = {
    "everything": [],
    "orders 1 to 6": [TEXT + n for n in (1, 2, 3, 4, 5, 6)] + [RECORDS + n for n in (1, 2, 3, 4, 5)],
    "words": [TEXT + n for n in (7, 8, 10, 12)],
    "lines, columns, shapes": [TEXT + n for n in (11, 13, 14)],
    "bytes above, in records": [RECORDS + n for n in (6, 7, 8, 9, 11, 13, 14, 18, 19)],
    "sparse and following bytes, in records": [RECORDS + n for n in (12, 15, 16, 17, 20)],
    "matches": [MATCHES],
    "histories through maps": [MAPS],
    "refinement (SSE)": [REFINED],
    "weights chosen by contexts": [SELECTED],
}

EDITS = [
    ("state.py", "REGISTERS = 30", "REGISTERS = 83\nLEFT_OUT = np.zeros(53, np.int64)"),
    ("state.py", "    registers[KIND],", "    registers[30:] = LEFT_OUT\n    registers[KIND],"),
    (
        "predictor.py",
        "        if value != 0:",
        f"        if value != 0 and (base != 0 or s.registers[{TEXT} + 24 * s.registers[KIND] + i] == 0):",
    ),
    (
        "predictor.py",
        "        match.follow(s)",
        f"        if s.registers[{MATCHES}] == 0:\n            match.follow(s)",
    ),
    ("predictor.py", "STRETCH[s.maps[m] >> 20]", f"STRETCH[s.maps[m] >> 20] if s.registers[{MAPS}] == 0 else 0"),
    (
        "predictor.py",
        "    return mixer.mix(s)",
        f"    if s.registers[{SELECTED}]:\n        for m in range(5):\n            sets[m] = m * SETS\n"
        "    return mixer.mix(s)",
    ),
    ("mixer.py", "p = 2 * np.int64(SQUASH", f"p = (4 if r[{REFINED}] else 2) * np.int64(SQUASH"),
    ("mixer.py", "for i in range(2):", f"for i in range(0 if r[{REFINED}] else 2):"),
    (
        "contexts.py",
        "    for i in range(used):\n        s.hashes[i] = mixed(s.hashes[i], i + 1)\n    s.registers[USED] = used",
        "    kept, r = 0, s.registers\n    for i in range(used):\n"
        f"        if r[{TIMED}] == 0 or r[{TEXT} + 24 * r[KIND] + i] == 0:\n"
        "            s.hashes[kept] = mixed(s.hashes[i], i + 1)\n            kept += 1\n    r[USED] = kept",
    ),
    ("compressor.py", "_SHORT = 15", "_SHORT = 0"),  # what primers teach is not cached
]
"""File of codec/cm, what is there, and what comes in its place."""

MEASURE = f"""
import json, shutil, sys
from pathlib import Path
from codec.cache import cache_folder
(own := cache_folder() / "numba").mkdir()
for path in Path(sys.argv[1]).iterdir():
    if path.name.startswith({SAME}):
        shutil.copy(path, own)
from codec.cm import compressor, state
texts = {{path.name: path.read_bytes() for path in sorted(Path(sys.argv[3]).iterdir())}}
if sys.argv[2]:
    import codec
    from codec.backends.cpu.backend import CpuBackend
    from codec.text.open_coder import make_coder
    from codec.text.solid import coder as solid, mixed
    pack = codec.open(sys.argv[2])
    coder = make_coder(pack)
    coder.__dict__["backend"] = CpuBackend(pack.weights)  # without the self-test
    mixing, sums, plain = solid.SolidCoder(coder)._mixing, {{}}, mixed.Mixing._distributions
    def remembered(self, blocks):
        key = blocks[0]._block.text
        if key not in sums:
            sums[key] = list(plain(self, blocks))
        return iter(sums[key])
    mixed.Mixing._distributions = remembered
    code = lambda data: mixing.encode([data])[0].data
else:
    kinds = {{name: compressor.compress(text)[0] for name, text in texts.items()}}
    code = lambda data: compressor.compress(data, kinds[name])
if not sys.argv[2]:
    from time import process_time
    seconds = {{variant: [] for variant in {VARIANTS}}}
    for _ in range(7):
        for variant, left_out in {VARIANTS}.items():
            state.LEFT_OUT[:] = 0
            for register in (*left_out, {TIMED}):
                state.LEFT_OUT[register - 30] = 1
            total = 0.0
            for name in ("alice29.txt", "kennedy.xls"):
                begin = process_time()
                compressor.compress(texts[name], compressor.PLAIN if name == "alice29.txt" else compressor.RECORDS)
                total += process_time() - begin
            seconds[variant].append(total)
    least = {{variant: min(found) for variant, found in seconds.items()}}
    for variant in {VARIANTS}:
        print(f"| {{variant}} | {{least[variant] / least['everything']:.2f}} of the time |", flush=True)
for variant, left_out in {VARIANTS}.items():
    state.LEFT_OUT[:] = 0
    for register in left_out:
        state.LEFT_OUT[register - 30] = 1
    compressor._primed.cache_clear()
    sizes = []
    for name, data in texts.items():
        sizes.append(len(code(data)))
    print("|", variant, "|", " | ".join(f"{{size:,}}" for size in sizes), "|", f"{{sum(sizes):,}} |", flush=True)
"""


def texts() -> dict[str, bytes]:
    """Return the beginnings of some texts; $TEXTS names more files."""

    def documents(path: Path) -> bytes:
        found = b""
        with lzma.open(path) as lines:
            while len(found) < BYTES:
                found += json.loads(next(lines))["text"].encode() + b"\n"
        return found

    data = shared("data")
    names = ("alice29.txt", "kennedy.xls", "sum")
    files = {name: lzma.decompress((data / "corpora" / f"{name}.xz").read_bytes()) for name in names}
    found = {
        **files,
        "raw FineWeb": documents(data / "raw" / "fineweb_pg_verify200.jsonl.xz"),
        "validation": documents(data / "val" / "fineweb_val_head.jsonl.xz"),
        "Wikipedia": documents(data / "train" / "enwiki2.jsonl.xz"),
    }
    for path in map(Path, os.environ.get("TEXTS", "").split()):
        found[path.stem] = path.read_bytes()
    return {name: text[:BYTES] for name, text in found.items()}


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("model", ["", str(PACK)], ids=["alone", "with the model"])
def test_what_each_input_is_worth(tmp_path, model):
    """Alone, bytes of each text under the kind that is best with everything; with the model, of the texts for it."""
    shutil.copytree(ROOT / "codec", tmp_path / "codec", ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in EDITS:
        path = tmp_path / "codec" / "cm" / file
        source = path.read_text()
        assert before in source, (file, before)
        path.write_text(source.replace(before, after))
    (tmp_path / "texts").mkdir()
    for name, text in texts().items():
        if not model or name not in ("kennedy.xls", "sum"):
            (tmp_path / "texts" / name).write_bytes(text)
    print(
        f"\n| left out | {' | '.join(sorted(path.name for path in (tmp_path / 'texts').iterdir()))} | all |", flush=True
    )
    command = [sys.executable, "-c", MEASURE, str(cache_folder() / "numba"), model, str(tmp_path / "texts")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "UNDERPAR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
