"""The angles by which rotary embeddings turn, in decimals that every machine computes alike."""

from decimal import Context, Decimal
from functools import lru_cache

_DECIMAL = Context(prec=60)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")


@lru_cache
def frequencies(
    base: float,
    dims: int,
    scaling: str = "none",
    factor: float = 1.0,
    low: float = 1.0,
    high: float = 4.0,
    trained: int = 8192,
) -> tuple[Decimal, ...]:
    """Return the angles by which pairs of dimensions turn from one position to the next.

    Pair i turns by base^(-2 i / dims). `linear` divides all by `factor` (Chen et al. 2023). `llama3` divides those that
    turn at most `low` times in a window of `trained` positions, keeps those that turn at least `high` times, and goes
    from one to the other on a line of turns in between (Llama 3.1's description).
    """
    log_base, found = _DECIMAL.ln(Decimal(base)), []
    for i in range(dims // 2):
        angle = _DECIMAL.exp(_DECIMAL.multiply(_DECIMAL.divide(Decimal(-2 * i), Decimal(dims)), log_base))
        if scaling == "linear":
            angle = _DECIMAL.divide(angle, Decimal(factor))
        elif scaling == "llama3":
            turns = _DECIMAL.divide(_DECIMAL.multiply(Decimal(trained), angle), _DECIMAL.multiply(Decimal(2), _PI))
            share = _DECIMAL.divide(_DECIMAL.subtract(turns, Decimal(low)), Decimal(high) - Decimal(low))
            kept = min(Decimal(1), max(Decimal(0), share))
            slowed = _DECIMAL.divide(_DECIMAL.subtract(Decimal(1), kept), Decimal(factor))
            angle = _DECIMAL.multiply(angle, _DECIMAL.add(kept, slowed))
        found.append(angle)
    return tuple(found)
