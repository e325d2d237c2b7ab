"""Digests of what a machine codes, beside those of x86-64: `python -m tests.support.machines [--reference] [NAME...]`.

Needs the libraries that coding text needs, and files of tests/golden/files: packs, and archives that x86-64 wrote.
Decoding these archives is one direction; writing the same bytes is the other, as a reader of equal bytes reads
the same. With --reference the model runs on torch, as where compiled code fails the self-test.

`python -m tests.support.machines --write` writes the digests anew.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "files"
DIGESTS = FOLDER.parent / "machines.json"
PACKS = ("plain", "every", "llama", "gpt2")

TEXTS = [
    b"The quick brown fox jumps over the lazy dog, again and again.",
    b"",
    b"\xff\x00 bytes",
    "naïve ☃ words\r\n".encode(),
    b"the same words, the same words, the same words",
]
BLOCK = b"To be, or not to be: that is the question:\r\nWhether 'tis nobler in the mind to suffer\r\n" * 3


def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:32]


def open_golden(name: str) -> Any:
    import codec

    return codec.open(FOLDER / f"{name}.pack")


def archive(name: str) -> bytes:
    """TEXTS under a pack, with the model alone and as they come, and with recall where the pack has tables."""
    import codec
    from codec.text.open_coder import default_policy
    from codec.text.policy import Adaptation

    pack, stream = open_golden(name), BytesIO()
    policy = default_policy(pack, Adaptation.RECALL if pack.recall else Adaptation.NONE)
    with codec.ArchiveWriter(stream, pack, policy) as writer:
        writer.append(TEXTS, True)
        writer.append(TEXTS, False)
    return stream.getvalue()


def tables() -> Iterator[tuple[str, str]]:
    from codec.numerics import tables as made
    from codec.numerics.rope import frequencies

    turns = made.turn_table(frequencies(500.0, 10, "llama3", 4.0, 1.0, 4.0, 64))
    yield "tables", digest(made.softcap_table(30.0), made.sigmoid_table(), made.rope_turns(1e4, 8, 32, 2.0), turns)


def weights(name: str) -> Iterator[tuple[str, str]]:
    pack = open_golden(name)
    parts = [part for n in sorted(pack.matrices) for part in (pack.matrices[n].symbols, pack.matrices[n].dequantize())]
    yield f"{name}: weights", digest(*parts, *(pack.vectors[n] for n in sorted(pack.vectors)))


def coded(name: str) -> Iterator[tuple[str, str]]:
    import codec

    yield f"{name}: archive", digest(archive(name))
    found = codec.decode(open_golden(name), (FOLDER / f"{name}.upz").read_bytes())
    assert found == [*TEXTS, *TEXTS], f"{name}: the archive of x86-64 decodes to {found}"
    yield f"{name}: decoded", digest(*found)


def blocks(name: str) -> Iterator[tuple[str, str]]:
    from codec.text.solid.blocks import open_blocks

    solid = open_blocks(open_golden(name))
    assert solid._mixing
    (found,) = solid._mixing.encode([BLOCK])
    assert found
    mixed = found.data
    yield f"{name}: mixed block", digest(mixed)
    assert solid.decode_block(2, mixed, len(BLOCK)) == BLOCK


def contexts() -> Iterator[tuple[str, str]]:
    from codec.cm.compressor import compress, decompress

    payload = compress(BLOCK)
    yield "contexts", digest(payload)
    assert decompress(payload, len(BLOCK)) == BLOCK


def packed() -> Iterator[tuple[str, str]]:
    """What `compress` promises without a budget: the tensors that come back."""
    import torch

    import codec

    integers = (np.arange(64 * 64) * 40_503 % 65_521).reshape(64, 64)
    state = codec.decompress(codec.compress({"w": torch.from_numpy((integers - 32_760) / 4096).float()}))
    yield "compress", digest(state["w"].numpy())


JOBS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {"tables": tables, "contexts": contexts, "compress": packed}
for _name in PACKS:
    JOBS[f"{_name}: weights"] = lambda name=_name: weights(name)
    JOBS[f"{_name}: archive"] = lambda name=_name: coded(name)
JOBS["plain: block"] = lambda: blocks("plain")


def use_the_reference() -> None:
    """Run models on torch, whatever the self-test says."""
    from codec.backends import select
    from codec.text import coder

    coder.make_backend = select._reference


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--reference" in sys.argv:
        use_the_reference()
    from numba.core.registry import cpu_target

    name, features = cpu_target.target_context.codegen().magic_tuple()[1:]
    shown = [feature for feature in ("avx512f", "avx2", "fma", "sse4.2", "neon") if f"+{feature}" in features]
    print(f"{platform.machine()}, compiled for {name} with {' '.join(shown) or 'no vectors of these'}", flush=True)
    expected = json.loads(DIGESTS.read_text()) if "--write" not in sys.argv else {}
    found: dict[str, str] = {}
    wrong = 0
    for job in words or JOBS:
        begin = time.perf_counter()
        for key, value in JOBS[job]():
            found[key] = value
            same = value == expected.get(key) or not expected
            wrong += not same
            verdict = f"DIFFERS from {expected.get(key)}" if not same else "same" if expected else "written"
            print(f"{key}: {value} {verdict} ({time.perf_counter() - begin:.0f} s)", flush=True)
    if "--write" in sys.argv:
        DIGESTS.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    print(f"{len(found) - wrong} of {len(found)} digests are those of x86-64")
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
