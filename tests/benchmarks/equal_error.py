"""Compare the weight codec with simple ones on any safetensors file, without calibration: bytes at equal total error.

    python -m tests.benchmarks.equal_error FILE.safetensors [BITS ...]

For each rate the file is packed at about so many bits a weight. The total error is the squared error of all matrices
over their squares. Then the steps of two other codecs are scaled until their total error is the same: `int`, a step for
each row from its largest weight, with zstandard 19; and `sdclip`, a step from the row's standard deviation, with brotli
11. Neither clips, and integers beyond a byte take two, in planes. Both keep other tensors as float16.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

import codec
from eval.ablate.ablate import Point, make
from eval.ablate.peers import PEERS
from eval.ablate.subject import Subject, load_subject

Floats = NDArray[np.float32]

TABLES: dict[str, tuple[Callable[[Floats], Floats], Callable[[bytes], bytes]]] = {
    "int": (lambda w: np.abs(w).max(1), lambda data: zstandard.ZstdCompressor(level=19).compress(data)),
    "sdclip": (lambda w: w.std(1), lambda data: brotli.compress(data, quality=11, lgwin=24)),
}
"""The measure of a row that its step is proportional to, and the compressor, by codec."""


def rounded(weights: Floats, sizes: Floats, scale: float) -> tuple[NDArray[np.int32], NDArray[np.float16], float]:
    """Return integers [R, C] on steps of scale * sizes [R], the steps, and the squared error."""
    least = float(np.finfo(np.float16).smallest_subnormal)
    steps = np.maximum(scale * sizes, least).astype(np.float16)
    symbols = np.rint(weights / steps[:, None].astype(np.float32)).astype(np.int32)
    errors = symbols * steps[:, None].astype(np.float32) - weights
    return symbols, steps, float(np.square(errors, dtype=np.float64).sum())


def scale_for(subject: Subject, measure: Callable[[Floats], Floats], error: float, power: float) -> float:
    """Return the scale at which the total error is within a thousandth of `error`."""
    scale = 0.01
    for _ in range(20):
        found = sum(rounded(w, measure(w), scale)[2] for w in subject.matrices.values()) / power
        if abs(found / error - 1) < 1e-3:
            break
        scale *= float(np.clip((error / found) ** 0.5, 0.1, 10))
    return scale


def peer_row(subject: Subject, name: str, error: float, power: float) -> list[str]:
    """Return a line of the table for a codec of TABLES."""
    measure, shrink = TABLES[name]
    scale = scale_for(subject, measure, error, power)
    planes, largest, by_name, total = [], 0, {}, 0.0
    for tensor, weights in subject.matrices.items():
        symbols, steps, squared = rounded(weights, measure(weights), scale)
        wide = symbols.astype(np.int16)
        low, high = (wide & 255).astype(np.uint8), (wide >> 8).astype(np.int8)
        planes += [low.tobytes(), *([high.tobytes()] if np.abs(symbols).max() > 127 else []), steps.tobytes()]
        largest, total = max(largest, int(np.abs(symbols).max())), total + squared
        by_name[tensor] = squared / float(np.square(weights, dtype=np.float64).sum())
    planes += [subject.state[n].half().numpy().tobytes() for n, role in subject.roles.items() if role == "vector"]
    size = len(shrink(b"".join(planes)))
    called = f"int-{np.log2(2 * largest + 1):.1f} + zstd" if name == "int" else "sdclip + brotli"
    return [called, f"{size:,}", f"{total / power:.4g}", *worst(by_name)]


def ours_row(subject: Subject, bits: float) -> tuple[list[str], float, int]:
    """Return the line of our pack at about `bits` bits a weight, its total error and its bytes."""
    made, state = make(subject, Point("strategy", "trellis256", rate=bits))
    by_name = {}
    for name, weights in subject.matrices.items():
        errors = state[name].float().reshape(weights.shape).numpy() - weights
        squares = float(np.square(weights, dtype=np.float64).sum())
        by_name[name] = float(np.square(errors, dtype=np.float64).sum()) / squares
    line = [f"pack, {bits:g} bits", f"{made.bytes:,}", f"{made.relative_error:.4g}", *worst(by_name)]
    return line, made.relative_error, made.bytes


def worst(errors: dict[str, float]) -> list[str]:
    """Return the tensor of the largest error, and that error over the median tensor's."""
    name = max(errors, key=lambda n: errors[n])
    return [f"`{name}`", f"{errors[name] / float(np.median(list(errors.values()))):.2f}"]


def main(path: Path, rates: list[float]) -> None:
    """Print the table."""
    subject = load_subject(path)
    power = sum(float(np.square(w, dtype=np.float64).sum()) for w in subject.matrices.values())
    weights = sum(w.size for w in subject.matrices.values())
    print(f"{path.name}: {path.stat().st_size:,} bytes, {subject.parameters:,} weights, {weights:,} in matrices")
    print("| | bytes | total error | worst tensor | over the median | bytes over the pack's |")
    print("|---|---|---|---|---|---|")
    for bits in rates:
        line, error, size = ours_row(subject, bits)
        print("|", " | ".join(line), "| 1 |", flush=True)
        for name in TABLES:
            line = peer_row(subject, name, error, power)
            print("|", " | ".join(line), f"| {int(line[1].replace(',', '')) / size:.3f} |", flush=True)
    exact = len(codec.compress(subject.state, lossless=["*"]))
    print(f"| pack, lossless | {exact:,} | 0 | | | 1 |")
    if not PEERS["zipnn"].missing():
        size = PEERS["zipnn"].run(subject, 1.0, 1.0).bytes
        print(f"| zipnn | {size:,} | 0 | | | {size / exact:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(bits) for bits in sys.argv[2:]] or [8, 6, 4, 3, 2.5])
