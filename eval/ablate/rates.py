"""Codecs of papers that report entropies and write no files: WaterSIC and EntQuant, implemented from the papers.

WaterSIC (2603.04956): steps by column from the pivots of the input moment, error feedback, then factors of rows and
columns by alternating least squares; the rate is the mean entropy of the columns' integers. EntQuant (2601.22787):
weights over a scale for each row become float8 numbers, which asymmetric numeral systems code at their entropy. Vectors
are float16 in both.
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from codec.pack.parts.part import quantized_part
from codec.quantization.feedback import damped
from codec.quantization.quantized import Quantized
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from eval.ablate.peer import Coded, Peer, State
from eval.ablate.subject import Subject

RATE = 3.5
"""Bits a weight of every matrix at scale 1, about: WaterSIC gives all matrices one rate."""

ROUNDS = 4
"""Rounds of alternating least squares; a fifth changes the error in the fourth digit."""

FLOAT8 = 187.0
"""EntQuant's scale at scale 1, in root mean squares of a row: the steps of float8 around 0, 2^-9, are then 0.365 root
mean squares, which costs about 3.5 bits a weight."""


def watersic_peer(ideal: bool) -> Peer:
    """Return WaterSIC; the integers cost their columns' entropies, or what our coder writes for them."""

    def run(subject: Subject, scale: float, embedding: float) -> Coded:
        began = time.perf_counter()
        size, state = _vectors(subject)
        for name, weights in subject.matrices.items():
            matrix = subject.matrix(name)
            one = SensitivityGrid(1.0, states=0, by_row=False)
            factor = scale * (embedding if subject.roles[name] == "embedding" else 1.0)
            unit = factor * unit_for(RATE, [(one.rates(matrix), weights.shape[1])], weights.size)
            found = SensitivityGrid(unit, states=0, by_row=False)(matrix)
            rows, columns = rescaled(weights, found, damped(matrix.moments.inputs))
            size += 2 * (len(rows) + len(columns))  # float16
            size += column_bytes(found.symbols) if ideal else len(quantized_part(found))
            back = (found.symbols * rows[:, None] * columns).astype(np.float32)
            state[name] = torch.from_numpy(back).reshape(subject.state[name].shape)
        return Coded(size, state, time.perf_counter() - began, 0.0)

    return Peer(run)


def rescaled(
    weights: NDArray[np.float32], found: Quantized, moment: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the factors of rows and columns that bring the integers nearest to the weights.

    Args:
        weights: [R, C].
        found: the integers, with steps to begin from.
        moment: of the inputs, [C, C] or its diagonal [C], which says how near counts.
    """
    symbols, truth = found.symbols.astype(np.float64), weights.astype(np.float64)
    full = np.diag(moment) if moment.ndim == 1 else moment
    columns = np.ones(weights.shape[1]) if found.columns is None else found.columns.astype(np.float64)
    rows, pulled = found.rows.astype(np.float64), truth @ full
    for _ in range(ROUNDS):
        plain = symbols * columns
        power = ((plain @ full) * plain).sum(1)
        rows = np.where(power > 0, (plain * pulled).sum(1) / np.where(power > 0, power, 1), rows)
        scaled = symbols * rows[:, None]
        gram = full * (scaled.T @ scaled)
        alive = np.diagonal(gram) > 0
        gram[np.diag_indices(len(gram))] += 1e-9 * np.diagonal(gram).max(initial=0) + ~alive
        columns = np.where(alive, np.linalg.solve(gram, (scaled * pulled).sum(0)), columns)
    return rows, columns


def column_bytes(symbols: NDArray[np.int32]) -> int:
    """Return the bytes of the columns' empirical entropies, without those of their tables."""
    bits = 0.0
    for column in symbols.T:
        bits += entropy_bits(column)
    return int(np.ceil(bits / 8))


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """Return the bits of symbols [N] at their empirical entropy.

    >>> entropy_bits(np.array([1, 1, 2, 2]))
    4.0
    """
    counts = np.unique(symbols, return_counts=True)[1]
    return float(counts @ np.log2(symbols.size / counts)) if symbols.size else 0.0


def entquant_peer() -> Peer:
    """Return EntQuant: float8 with three bits of mantissa, a float16 scale for each row, entropies by tensor."""

    def run(subject: Subject, scale: float, embedding: float) -> Coded:
        began = time.perf_counter()
        size, state = _vectors(subject)
        for name, weights in subject.matrices.items():
            factor = scale * (embedding if subject.roles[name] == "embedding" else 1.0)
            deviations = np.sqrt(np.square(weights, dtype=np.float64).mean(1, keepdims=True))
            steps = np.maximum(factor * deviations * FLOAT8, 2.0**-24).astype(np.float16).astype(np.float32)
            eighths = torch.from_numpy((weights / steps).clip(-448, 448)).to(torch.float8_e4m3fn)
            size += int(np.ceil(entropy_bits(eighths.view(torch.uint8).numpy()) / 8)) + 2 * len(weights)
            state[name] = (eighths.float() * torch.from_numpy(steps)).reshape(subject.state[name].shape)
        return Coded(size, state, time.perf_counter() - began, 0.0)

    return Peer(run)


def _vectors(subject: Subject) -> tuple[int, State]:
    """Return the bytes of all tensors that are not matrices, as float16 or integers, and these tensors."""
    size, state = 0, {}
    for name, role in subject.roles.items():
        if role == "vector":
            tensor = subject.state[name].detach()
            kept = tensor.half().float() if tensor.is_floating_point() else tensor
            state[name] = kept
            size += tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
    return size, state
