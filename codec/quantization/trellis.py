"""Entropy-coded trellis-coded quantization: union codebooks on Ungerboeck's one-dimensional codes.

A sample x, in units of half a step, becomes an integer q; the trellis allows only every other integer: the lowest bit
of the state fixes q's lowest bit z0, and q's second bit z1 drives the state. The Viterbi search finds the path of least
squared error (no rate term: pulling towards zero aligns the errors of all layers), and the entropy coder
codes k = (q - z0) / 2, whose alphabet is that of a uniform quantizer of the whole step.

Sources: Marcellin and Fischer (1990), Fischer and Wang (1992); codes from Ungerboeck (1982), table I.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, making

CODES = {4: (0o5, 0o2), 8: (0o13, 0o04), 16: (0o23, 0o04), 64: (0o103, 0o024), 256: (0o515, 0o362)}
"""Parity-check polynomials (h0, h1) of the code of each number of states."""

_FAR = 1e30  # cost of a state that cannot be reached
_REBASE = 32  # samples between subtractions of the least cost


@lru_cache
def transitions(states: int) -> NDArray[np.int64]:
    """Return the state that follows each state with z1 = 0 and z1 = 1: int64 [states, 2]."""
    h0, h1 = CODES[states]
    return np.array([[(s >> 1) ^ ((s & 1) * (h0 >> 1)) ^ (z1 * (h1 >> 1)) for z1 in (0, 1)] for s in range(states)])


def predecessors(states: int) -> NDArray[np.uint64]:
    """Return the state before each state, for z1 = 0 and z1 = 1: uint64 [2, states].

    Each state has exactly one predecessor for each z1, since h0 has the highest bit: the upper half of the states is
    entered with z0 = 1.
    """
    found = np.empty((2, states), np.uint64)
    for z1 in (0, 1):
        found[z1, transitions(states)[:, z1]] = np.arange(states)
    return found


@compiled
def _enter(cost, new, came, before, without, with_z1):
    """Compute the costs of half of the states; unsigned indices and no branch let the compiler vectorize the loop."""
    for s in range(new.shape[0]):
        a = cost[before[0, s]] + without
        b = cost[before[1, s]] + with_z1
        came[s] = np.uint8(b < a)
        new[s] = min(a, b)


@making
def search(samples: NDArray[np.float64], before: NDArray[np.uint64], state: int) -> tuple[NDArray[np.int32], int]:
    """Return the allowed integers nearest to samples, by the Viterbi algorithm.

    Args:
        samples: [N] in units of half a step.
        before: `predecessors(states)`.
        state: the state at the beginning.

    Returns:
        (integers int32 [N], the state at the end).
    """
    count, states = samples.shape[0], before.shape[1]
    half = states // 2
    lower, upper = before[:, :half].copy(), before[:, half:].copy()
    cost = np.full(states, np.float32(_FAR))
    cost[state] = 0.0
    new = np.empty(states, np.float32)
    came = np.empty((count, states), np.uint8)  # z1 of the better way into each state
    distance = np.empty(4, np.float32)
    for n in range(count):
        for subset in range(4):
            error = samples[n] - subset
            error -= 4.0 * np.rint(error * 0.25)
            distance[subset] = error * error
        _enter(cost, new[:half], came[n, :half], lower, distance[0], distance[2])
        _enter(cost, new[half:], came[n, half:], upper, distance[1], distance[3])
        if n % _REBASE == _REBASE - 1:  # float32 keeps small differences of costs only while costs are small
            new -= new.min()
        cost, new = new, cost
    last = int(np.argmin(cost))
    integers = np.empty(count, np.int32)
    s = np.int64(last)
    for n in range(count - 1, -1, -1):
        z1 = came[n, s]
        s = np.int64(before[z1, s])
        subset = (s & 1) + 2 * z1
        integers[n] = subset + 4 * int(np.rint((samples[n] - subset) * 0.25))
    return integers, last
