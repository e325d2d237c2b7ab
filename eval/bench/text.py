"""Compare this project's archive with general-purpose compressors (baselines), on the same text in the same run.

Measured are bytes, and speed both ways. A baseline compresses all documents as one stream, without separators. The
archive codes each document alone and keeps the boundaries, which favours the baselines. Every result is decompressed
and compared. Speeds are by processor time, of this process and of the programs started, so that other jobs on the
machine do not count; wall time is given too.
"""

import lzma
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import brotli
import zstandard

import codec
from codec.errors import CodecError
from codec.pack.reader import Pack

OURS = "underpar"

_PPMD_ORDER, _PPMD_BYTES = 16, 256 << 20
_ZSTD_WINDOW = 27  # --long: 128 MiB


class Pair(NamedTuple):
    """A baseline: both ways."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Measured:
    """The measurements of one compressor on one text."""

    text: str
    name: str
    text_bytes: int
    bytes: int
    model_bytes: int  # of the pack, which a reader needs once
    encode_seconds: float  # of processor time
    decode_seconds: float
    encode_wall: float
    decode_wall: float

    @property
    def ratio(self) -> float:
        """Return text over compressed bytes, the model left out."""
        return self.text_bytes / self.bytes

    @property
    def ratio_with_model(self) -> float:
        """Return text over compressed bytes, the model counted in full."""
        return self.text_bytes / (self.bytes + self.model_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the fields and both ratios."""
        return asdict(self) | {"ratio": self.ratio, "ratio_with_model": self.ratio_with_model}


def baselines() -> tuple[dict[str, Pair], dict[str, str]]:
    """Return the baselines of this machine, and the reasons why others are missing."""
    found: dict[str, Pair] = {
        "zstd -22 --ultra --long": Pair(
            _zstd, lambda data: zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW).decompress(data)
        ),
        "xz -9e": Pair(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
        "brotli -11": Pair(lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress),
    }
    missing = {}
    try:
        import pyppmd

        settings: dict[str, Any] = {"max_order": _PPMD_ORDER, "mem_size": _PPMD_BYTES}
        found["ppmd"] = Pair(
            lambda data: pyppmd.compress(data, **settings),
            lambda data: cast(bytes, pyppmd.decompress(data, **settings)),
        )
    except ImportError:
        missing["ppmd"] = "no module pyppmd; pip install underpar[dev]"
    for name, program, pack, unpack in (
        (
            "zpaq -m5",
            "zpaq",
            ["add", "{out}", "{text}", "-m5", "-t1"],
            ["extract", "{out}", "{text}", "-to", "{back}", "-t1"],
        ),
        ("lrzip -z", "lrzip", ["-z", "-q", "-o", "{out}", "{text}"], ["-d", "-q", "-o", "{back}", "{out}"]),
    ):
        if shutil.which(program):
            found[name] = Pair(*(_program(program, arguments, way) for way, arguments in enumerate((pack, unpack))))
        else:
            missing[name] = f"no program {program}; apt install {program}"
    return found, missing


def _zstd(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, window_log=_ZSTD_WINDOW, enable_ldm=True, write_checksum=True
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def _program(program: str, arguments: Sequence[str], back: int) -> Callable[[bytes], bytes]:
    """Return one way of a program that works on files."""

    def run(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            names = {"text": "text", "out": "text.zpaq" if program == "zpaq" else "text.lrz", "back": "back"}
            source, result = (names["out"], names["back"]) if back else (names["text"], names["out"])
            (Path(folder) / source).write_bytes(data)
            line = [program, *(argument.format(**names) for argument in arguments)]
            done = subprocess.run(line, cwd=folder, capture_output=True, check=False)
            if done.returncode:
                raise CodecError(f"{' '.join(line)} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
            return (Path(folder) / result).read_bytes()

    return run


def archive(pack: Pack) -> tuple[Callable[[list[bytes]], bytes], Callable[[bytes], list[bytes]]]:
    """Return both ways of an archive; the first call compiles, so that the measured calls do not."""
    codec.decode(pack, codec.encode(pack, [b"Once, to compile."]))
    return lambda documents: codec.encode(pack, documents), lambda data: codec.decode(pack, data)


def measure(
    texts: Mapping[str, Sequence[bytes]], pack: Pack, advance: Callable[[str], None] = lambda what: None
) -> list[Measured]:
    """Measure every compressor on every text.

    Args:
        texts: documents by the name of their text.
        pack: of this project's archive.
        advance: called with a description of the next measurement.

    Raises:
        CodecError: a baseline fails, or does not restore the text.
    """
    found, rows = baselines()[0], []
    encode, decode = archive(pack)
    for text, documents in texts.items():
        joined = b"".join(documents)
        jobs: list[tuple[str, int, Callable, Callable, Any]] = [
            (name, 0, pair.compress, pair.decompress, joined) for name, pair in found.items()
        ]
        jobs.append((OURS, pack.size, encode, decode, list(documents)))
        for name, model, there, back, data in jobs:
            advance(f"{name} on {text}")
            packed, *encoded = _timed(there, data)
            restored, *decoded = _timed(back, packed)
            if restored != data:
                raise CodecError(f"{name} does not restore {text}")
            (cpu, wall), (cpu_back, wall_back) = encoded, decoded
            rows.append(Measured(text, name, len(joined), len(packed), model, cpu, cpu_back, wall, wall_back))
    return rows


def _timed(work: Callable, data: Any) -> tuple[Any, float, float]:
    """Return the result of `work`, and its seconds of processor and wall time."""
    before, own, began = os.times(), time.process_time(), time.perf_counter()
    result = work(data)
    own, after = time.process_time() - own, os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return result, own + children, time.perf_counter() - began
