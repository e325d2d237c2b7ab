"""Our archive beside general-purpose compressors on three kinds of text. `make bench` runs and prints it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import codec
from eval.bench.text import OURS, baselines, measure
from eval.cli.bench import cut
from tests.support.helpers import ROOT, shared

PACK = ROOT / "artifacts" / "models" / "small.pack"
BYTES = 200_000

TEXTS: dict[str, Callable[[], Path]] = {
    "FineWeb validation": lambda: ROOT / "trainer" / "sample" / "val.jsonl.xz",
    "raw FineWeb": lambda: shared("data", "raw", "fineweb_pg_verify200.jsonl.xz"),
    "Wikipedia": lambda: shared("data", "train", "enwiki_150MB.jsonl.xz"),
}


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("text", TEXTS)
def test_text_baselines(text: str) -> None:
    rows = measure({text: cut(TEXTS[text](), BYTES)}, codec.open(PACK.read_bytes()))
    print(f"\n{text}, {rows[0].text_bytes:,} bytes; kB a second of processor time")
    for row in sorted(rows, key=lambda row: row.bytes):
        speeds = [row.text_bytes / 1e3 / s for s in (row.encode_seconds, row.decode_seconds)]
        print(
            f"{row.name:26}{row.bytes:9,}  ratio {row.ratio:6.3f}  with model {row.ratio_with_model:6.3f}"
            f"  encode {speeds[0]:9.1f}  decode {speeds[1]:9.1f}"
        )
    for name, why in baselines()[1].items():
        print(f"{name:26}skipped: {why}")
    best = min(row.bytes for row in rows if row.name != OURS)
    assert next(row.bytes for row in rows if row.name == OURS) < best
