"""The results of a screen: each variant's mean score beside the recipe's, with standard errors and Welch's test."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.score.windows import Policy
from eval.screen.screen import Outcome, Result
from eval.screen.variants import BASE
from eval.tables import as_csv, markdown
from eval.welch import holm, moments, student_tail, welch

RESULTS = "results.json"


@dataclass(frozen=True)
class Effect:
    """A variant over all its seeds.

    Errors are standard errors. `p` is two-sided, of the hypothesis that the variant's mean is the recipe's; `p_holm` is
    adjusted for the number of variants. Errors and probabilities are None with too few runs. `train_tokens` and
    `seconds` are means over the runs; `seconds` is None if a run shared its device.
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
    seconds: float | None


def effects(results: Sequence[Result], policy: Policy) -> list[Effect]:
    """Return an effect for each variant that has runs, the recipe first; nothing without a run of the recipe."""
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
        seconds = [run.seconds for run in runs if run.seconds is not None]
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
                seconds=moments(seconds)[0] if len(seconds) == len(runs) else None,
            )
        )
    return rows


def _tested(scores: Sequence[float], base: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the difference of the means, its standard error, and the two-sided probability of Welch's test.

    A side of one run shows no variance; the other side's is taken (Student's test).
    """
    (mean, variance), (base_mean, base_variance) = moments(scores), moments(base)
    difference = mean - base_mean
    if len(scores) == 1 or len(base) == 1:
        variance = base_variance = max(variance, base_variance)  # the variance of a single run is 0
        degrees = float(len(scores) + len(base) - 2)
    else:
        _, degrees = welch(difference, (variance, len(scores)), (base_variance, len(base)))
    error = math.sqrt(variance / len(scores) + base_variance / len(base))
    if not degrees or not error:
        return difference, None, None
    return difference, error, 2 * student_tail(abs(difference) / error, degrees)


def holm_of(tails: Sequence[float | None]) -> list[float | None]:
    """Apply `eval.welch.holm` to the known probabilities."""
    adjusted = iter(holm([p for p in tails if p is not None]))
    return [None if p is None else next(adjusted) for p in tails]


def summary(outcome: Outcome, policy: Policy) -> dict[str, Any]:
    """Return everything about a screen but the curves, as JSON: the content of `RESULTS`.

    Fields: `policy`, `variants` (each the fields of `Effect`), `runs`, `failed`, `interrupted`.
    """
    return {
        "policy": policy.value,
        "variants": [asdict(effect) for effect in effects(outcome.results, policy)],
        "runs": [row(result) for result in outcome.results],
        "failed": outcome.failed,
        "interrupted": outcome.interrupted,
    }


def files(outcome: Outcome, policy: Policy) -> dict[str, bytes]:
    """Return the tables by file name."""
    result = summary(outcome, policy)
    return {
        RESULTS: json.dumps(result, indent=1).encode(),
        "variants.csv": as_csv(result["variants"]).encode(),
        "variants.md": as_markdown(effects(outcome.results, policy)).encode(),
        "runs.csv": as_csv(result["runs"]).encode(),
    }


def row(result: Result) -> dict[str, Any]:
    """Return a run as one flat row, without its metrics."""
    return {name: value for name, value in asdict(result).items() if name != "metrics"}


def cells(effect: Effect) -> list[str]:
    """Format an effect for people: variant, runs, bits per byte, difference, p, p of Holm; unknown values are empty."""
    tails = ["" if p is None else f"{p:.2g}" for p in (effect.p, effect.p_holm)]
    shown = "" if effect.variant == BASE else difference_of(effect)
    return [effect.variant.replace("_", " "), str(effect.runs), f"{effect.bpb:.4f}", shown, *tails]


def difference_of(effect: Effect) -> str:
    """Format the difference of an effect, with its standard error if known."""
    error = "" if effect.difference_error is None else f" ± {effect.difference_error:.4f}"
    return f"{effect.difference:+.4f}{error}".replace("-", "−")


def as_markdown(found: Sequence[Effect]) -> str:
    """Return the effects as a table in Markdown, best first."""
    heads = ["variant", "runs", "bits per byte", "difference", "p", "p (Holm)"]
    return markdown(heads, [cells(effect) for effect in sorted(found, key=lambda effect: effect.difference)])
