"""What a screen shows: each variant's mean score beside the recipe's, with standard errors and Welch's test."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codec.windows import Policy
from eval.screen import Outcome, Result
from eval.welch import holm, moments, student_tail, welch
from trainer.variants import BASE


@dataclass(frozen=True)
class Effect:
    """A variant over all its seeds. Errors are standard errors; they and `p` are None where too few runs say nothing.

    `p` is two-sided, of the hypothesis that the variant's mean is the recipe's; `p_holm` is adjusted for the number of
    variants. `train_tokens` and `seconds` are means over the runs.
    """

    variant: str
    runs: int
    bpb: float
    bpb_error: float | None
    difference: float
    difference_error: float | None
    p: float | None
    p_holm: float | None
    parameters: int
    train_tokens: int
    seconds: float


def effects(results: Sequence[Result], policy: Policy) -> list[Effect]:
    """An effect of each variant that has runs, the recipe first; none without a run of the recipe."""
    scores: dict[str, list[Result]] = {}
    for result in results:
        scores.setdefault(result.variant, []).append(result)
    if BASE not in scores:
        return []
    bpb = {name: [run.bpb(policy) for run in runs] for name, runs in scores.items()}
    found = {name: _tested(values, bpb[BASE]) for name, values in bpb.items() if name != BASE}
    adjusted = dict(zip(found, holm_of([p for *_, p in found.values()]), strict=True))
    rows = []
    for name in (BASE, *found):
        runs = scores[name]
        mean, variance = moments(bpb[name])
        difference, error, p = found.get(name, (0.0, None, None))
        rows.append(
            Effect(
                variant=name,
                runs=len(runs),
                bpb=mean,
                bpb_error=math.sqrt(variance / len(runs)) if len(runs) > 1 else None,
                difference=difference,
                difference_error=error,
                p=p,
                p_holm=adjusted.get(name),
                parameters=runs[0].parameters,
                train_tokens=round(moments([run.train_tokens for run in runs])[0]),
                seconds=moments([run.seconds for run in runs])[0],
            )
        )
    return rows


def _tested(scores: Sequence[float], base: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Difference of the means, its standard error, and the two-sided probability of Welch's test.

    A side of one run adds no variance of its own; the other's alone decides.
    """
    (mean, variance), (base_mean, base_variance) = moments(scores), moments(base)
    t, degrees = welch(mean - base_mean, (variance, len(scores)), (base_variance, len(base)))
    if not degrees:
        return mean - base_mean, None, None
    error = math.sqrt(variance / len(scores) + base_variance / len(base))
    return mean - base_mean, error, 2 * student_tail(abs(t), degrees)


def holm_of(tails: Sequence[float | None]) -> list[float | None]:
    """`eval.welch.holm` of those that are there."""
    adjusted = iter(holm([p for p in tails if p is not None]))
    return [None if p is None else next(adjusted) for p in tails]


def summary(outcome: Outcome, policy: Policy) -> dict[str, Any]:
    """Everything about a screen but the curves, as JSON.

    Fields: `policy`, `variants` (each the fields of `Effect`), `runs`, `failed`.
    """
    return {
        "policy": policy.value,
        "variants": [asdict(effect) for effect in effects(outcome.results, policy)],
        "runs": [row(result) for result in outcome.results],
        "failed": outcome.failed,
    }


def row(result: Result) -> dict[str, Any]:
    """A run as one flat row, without its journal."""
    return {name: value for name, value in asdict(result).items() if name != "metrics"}
