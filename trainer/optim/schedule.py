"""Learning rate and momentum over a run, as pure functions of the step and of the seconds passed."""

from dataclasses import dataclass, replace

from trainer.recipe import OptimRecipe, Recipe, Steps, TrainRecipe


def clock(train: TrainRecipe) -> float:
    """Return the seconds that the steps of a run may take; 0: unlimited."""
    return max(0.0, train.seconds - train.reserved_seconds)


def share_done(train: TrainRecipe, step: int, elapsed: float) -> float:
    """Return the share of a run that is done after `step` steps in `elapsed` seconds, 0 to 1, by the nearer cap."""
    by_steps = step / train.iterations if train.iterations else 0.0
    by_clock = elapsed / clock(train) if train.seconds else 0.0
    return max(by_steps, by_clock)


def mean_batch(train: TrainRecipe) -> float:
    """Return the tokens a step, averaged over a run that is capped by steps."""
    steps = train.batch_schedule or ((0.0, train.batch_tokens),)
    ends = [*(share for share, _ in steps[1:]), 1.0]
    return sum((end - begin) * tokens for (begin, tokens), end in zip(steps, ends, strict=True))


def over(train: TrainRecipe, step: int, elapsed: float) -> bool:
    """Return whether a run of `step` steps in `elapsed` seconds has reached one of its caps."""
    return bool(train.iterations and step >= train.iterations) or bool(train.seconds and elapsed >= clock(train))


def warmdown(train: TrainRecipe, step: int, elapsed: float) -> float:
    """Return the share of the learning rate that is left, 1 to 0, falling linearly at the end of the run.

    A run capped by seconds lasts as many steps as its mean step time so far promises, as in the challenge. With both
    caps set, the nearer counts.
    """
    if train.seconds and (step or not train.iterations):
        step_seconds = elapsed / step if step else 0.0
        steps_left = max(clock(train) - elapsed, 0.0) / step_seconds if step_seconds else float("inf")
        if train.iterations:
            steps_left = min(steps_left, train.iterations - step)
    else:
        steps_left = train.iterations - step
    length = train.warmdown_steps or train.warmdown_fraction * (step + steps_left)
    return min(1.0, steps_left / length) if length else 1.0


def lr_scale(train: TrainRecipe, step: int, elapsed: float) -> float:
    """Return the factor of every learning rate at step `step` (from 0)."""
    rise = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return rise * (train.min_lr + (1 - train.min_lr) * warmdown(train, step, elapsed))


def muon_momentum(optim: OptimRecipe, step: int) -> float:
    """Return Muon's momentum at step `step`, which rises linearly over the first steps."""
    done = min(1.0, step / optim.momentum_warmup) if optim.momentum_warmup else 1.0
    return optim.momentum_start + (optim.momentum - optim.momentum_start) * done


def averages(train: TrainRecipe, step: int, elapsed: float) -> bool:
    """Return whether the weights after `step` steps belong to the plain mean: every `swa_every` at the run's end."""
    at_the_end = share_done(train, step, elapsed) >= 1 - train.swa_fraction
    return bool(train.swa_every) and step % train.swa_every == 0 and at_the_end


@dataclass(frozen=True)
class Phase:
    """The properties of the steps in a part of a run.

    Attributes:
        late: whether rows come from the late shards.
        loops: whether the model's loops run.
        quantizes: whether the loss uses quantized weights.
        window: tokens a row.
        batch_tokens: tokens a step, over all processes.
    """

    late: bool
    loops: bool
    quantizes: bool
    window: int
    batch_tokens: int


def phase(recipe: Recipe, step: int, elapsed: float) -> Phase:
    """Return the phase of step `step` (from 0)."""
    return _phase_at(recipe, share_done(recipe.train, step, elapsed))


def phases(recipe: Recipe) -> list[Phase]:
    """Return a phase for each kind of model and shape of a run, in turn: each is a graph of its own for the compiler.

    Late rows make no other graph: `late` is False in all.
    """
    train = recipe.train
    shares = {0.0, train.loop_from, _qat_from(train)}
    shares.update(share for steps in (train.batch_schedule, train.window_schedule) for share, _ in steps)
    return list(dict.fromkeys(replace(_phase_at(recipe, share), late=False) for share in sorted(shares)))


def _phase_at(recipe: Recipe, share: float) -> Phase:
    """Return the phase at a share of the run.

    Late rows begin at `late_from`, loops at `loop_from`; the last `qat_fraction` is quantized.
    """
    train = recipe.train
    return Phase(
        late=bool(recipe.data.late_shards) and share >= recipe.data.late_from,
        loops=share >= train.loop_from,
        quantizes=bool(train.qat) and share >= _qat_from(train),
        window=_value_at(train.window_schedule, share, recipe.model.window),
        batch_tokens=_value_at(train.batch_schedule, share, train.batch_tokens),
    )


def _value_at(steps: Steps, share: float, otherwise: int) -> int:
    return next((value for begin, value in reversed(steps) if share >= begin), otherwise)


def _qat_from(train: TrainRecipe) -> float:
    return 1 - train.qat_fraction
