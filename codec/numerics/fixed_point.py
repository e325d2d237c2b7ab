"""Fixed-point arithmetic carried by float64 tensors: integers that stay exact, whatever the order of a sum.

Every value here is an integer (or an integer times a power of two) held in float64. As long as all partial sums stay
below 2^53, matrix products and reductions are exact, so batch shape, thread count and device cannot change them.
Only correctly rounded operations appear: + - x between tensors, tensor / tensor, round, compare, and bit views.
Never use here: division by a Python scalar (CUDA multiplies by the reciprocal), addcmul or lerp (contracted to FMA),
exp, tanh, sqrt without repair (libraries differ in the last bit).
"""

import math
import os
from functools import lru_cache

import torch
from torch import Tensor

from codec.errors import CodecError
from codec.numerics.widths import SNAP_BITS

EMULATION = "CUBLAS_EMULATE_DOUBLE_PRECISION"
"""The variable that makes cuBLAS compute float64 products from integers of fewer bits."""


def exponent(x: Tensor) -> Tensor:
    """Return int64 e with 2^(e-1) <= |x| < 2^e for normal float64 x; -1022 or less for zero and subnormal numbers."""
    return ((x.view(torch.int64) >> 52) & 0x7FF) - 1022


def power_of_two(n: Tensor) -> Tensor:
    """Return 2^n as float64 for int64 n in [-1022, 1023]."""
    return ((n + 1023) << 52).view(torch.float64)


def snap(x: Tensor, bits: int = SNAP_BITS) -> tuple[Tensor, Tensor]:
    """Round each last-dimension row to integers of `bits` bits on the finest power-of-two grid that holds the row.

    Args:
        x: float64 [..., n].
        bits: width of the integers, sign included.

    Returns:
        (integers float64 [..., n] with |X| <= 2^(bits-1), step float64 [..., 1]); x is about integers * step.
    """
    e = exponent(x.abs().amax(-1, keepdim=True)).clamp(-64, 960)
    return torch.round(x * power_of_two(bits - 1 - e)), power_of_two(e - bits + 1)


def snap_fixed(x: Tensor, fraction: int | Tensor, bits: int = SNAP_BITS) -> Tensor:
    """Round x to integers in units of 2^-fraction, saturating at |X| = 2^(bits-1)."""
    scaled = x * (math.ldexp(1.0, fraction) if isinstance(fraction, int) else power_of_two(fraction))
    limit = float(1 << (bits - 1))
    return torch.round(scaled).clamp(-limit, limit)


def reciprocal_sqrt(m: Tensor) -> Tensor:
    """Return 1 / sqrt(m) for float64 m >= 2^-970, to a relative error below 2^-25, the same on every device.

    m is scaled by a power of four to M in [2^50, 2^52). Whichever library takes the root, floor(sqrt(M)) is wrong by at
    most 1; exact products repair that error.
    """
    k = (52 - exponent(m)) >> 1
    scaled = m * power_of_two(2 * k)
    root = torch.floor(torch.sqrt(scaled))
    root = root - (root * root > scaled).to(torch.float64)
    up = root + 1.0
    root = root + (up * up <= scaled).to(torch.float64)
    return power_of_two(k) / root


@lru_cache
def check_products(device: torch.device) -> None:
    """Check that a device multiplies matrices in IEEE float64: a product with sums near 2^52 is compared with integers.

    Raises:
        CodecError: the sums are not exact, or cuBLAS was told to emulate float64.
    """
    if device.type == "cuda" and os.environ.get(EMULATION, "0") not in ("", "0"):
        raise CodecError(
            f"{EMULATION}={os.environ[EMULATION]}: exact inference needs float64 as IEEE defines it, not cuBLAS's "
            "emulation; unset the variable"
        )
    rows, columns = torch.arange(1, 65)[:, None], torch.arange(1, 254)
    left = (1 << 28) - (rows * columns * 40_503) % (1 << 14)
    right = ((1 << 16) - (rows * columns * 48_271) % (1 << 12)).T
    found = (left.double().to(device) @ right.double().to(device)).cpu()
    if not torch.equal(found.long(), left @ right):
        raise CodecError(f"device {device}: sums of products below 2^53 are not exact; its float64 is not IEEE's")
