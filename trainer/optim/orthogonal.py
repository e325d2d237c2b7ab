"""The polar factor U V^T of matrices U S V^T, by odd polynomials: matrix products alone, in bfloat16 on a GPU.

`newton_schulz` repeats one quintic (Jordan et al. 2024). `polar_express` gives each step the quintic that is best for
the range of singular values after the steps before (Amsel et al. 2025, "The Polar Express").
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]
"""Coefficients of x, x^3 and x^5."""

NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
"""Steep at 0; values near 1 stay within about 0.3 of 1 (Jordan et al. 2024)."""

STEPS = 5
"""Steps of either method: the challenge's and the paper's choice."""

LOWEST = 1e-3
"""The least singular value, of a matrix scaled to norm 1, that `polar_express` covers; the paper's choice."""

SAFETY = 1.01
"""Divisor of the input of all steps but the last: rounding in bfloat16 may take a value over the interval's upper end,
beyond which a quintic grows quickly."""


def newton_schulz(steps: int = STEPS) -> list[Quintic]:
    """Return one quintic, `steps` times."""
    return [NEWTON_SCHULZ] * steps


@lru_cache
def polar_express(steps: int = STEPS) -> list[Quintic]:
    """Return, for each step, the quintic nearest to 1 on the interval that holds the singular values at that step.

    The best polynomial of a step is also the best to continue from (Amsel et al. 2025, theorem 3.1), so the best
    sequence is found one step at a time.
    """
    found: list[Quintic] = []
    low, high = LOWEST, 1.0
    for step in range(steps):
        a, b, c = best_quintic(low, high)
        low = value((a, b, c), low)
        high = 2 - low
        safety = SAFETY if step < steps - 1 else 1.0
        found.append((a / safety, b / safety**3, c / safety**5))
    return found


def value(quintic: Quintic, x: float) -> float:
    """Return the quintic at x."""
    a, b, c = quintic
    return a * x + b * x**3 + c * x**5


def best_quintic(low: float, high: float) -> Quintic:
    """Return the odd quintic whose greatest distance from 1 on [low, high] is least, for 0 < low < high.

    The method is Remez's algorithm. Odd quintics that do not vanish have at most two zeros above 0. So a quintic is
    best if its distance has its greatest size at four points with alternating signs (Chebyshev): the two ends, and the
    two extrema between them.
    """
    inner = np.array([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    while True:
        x = np.array([low, *inner, high])
        a, b, c, _ = np.linalg.solve(np.stack([x, x**3, x**5, signs], 1), np.ones(4))
        # extrema: a + 3 b x^2 + 5 c x^4 = 0
        root = np.sqrt(9 * b * b - 20 * a * c)
        found = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
        if np.abs(found - inner).max() <= 1e-12 * high:
            return float(a), float(b), float(c)
        inner = found


def orthogonalise(stack: Tensor, quintics: list[Quintic]) -> Tensor:
    """Return U V^T, roughly, for each matrix U S V^T of a stack [N, R, C], by the steps `quintics`.

    Returns:
        [N, R, C] in bfloat16 on a GPU and float32 elsewhere. A matrix of zeros stays zero.
    """
    x = stack.to(torch.bfloat16 if stack.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in quintics:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def rows_levelled(stack: Tensor) -> Tensor:
    """Scale the rows of matrices [N, R, C] to length 1, except rows of zeros (MuonEq-R: the result favours no row)."""
    return stack / torch.linalg.vector_norm(stack, dim=-1, keepdim=True).clamp_min(1e-12)
