"""Learning rate and momentum over a run, as pure functions of the step and of the seconds that have passed."""

from dataclasses import dataclass

from trainer.recipe import OptimRecipe, TrainRecipe


def over(train: TrainRecipe, step: int, elapsed: float) -> bool:
    """Whether a run that has made `step` steps in `elapsed` seconds has reached one of its caps."""
    return bool(train.iterations and step >= train.iterations) or bool(train.seconds and elapsed >= train.seconds)


def warmdown(train: TrainRecipe, step: int, elapsed: float) -> float:
    """How much of the learning rate is left, 1 to 0, falling linearly at the end of the run.

    A run capped by seconds lasts as many steps as its mean step time so far promises, as in the challenge; where both
    caps are set, the one that is nearer counts.
    """
    if train.seconds and (step or not train.iterations):
        step_seconds = elapsed / step if step else 0.0
        steps_left = max(train.seconds - elapsed, 0.0) / step_seconds if step_seconds else float("inf")
        if train.iterations:
            steps_left = min(steps_left, train.iterations - step)
    else:
        steps_left = train.iterations - step
    length = train.warmdown_steps or train.warmdown_fraction * (step + steps_left)
    return min(1.0, steps_left / length) if length else 1.0


def lr_scale(train: TrainRecipe, step: int, elapsed: float) -> float:
    """What every learning rate of step `step` (from 0) is multiplied with."""
    rise = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return rise * (train.min_lr + (1 - train.min_lr) * warmdown(train, step, elapsed))


def muon_momentum(optim: OptimRecipe, step: int) -> float:
    """Muon's momentum at step `step`: it rises linearly from its start over its first steps."""
    done = min(1.0, step / optim.momentum_warmup) if optim.momentum_warmup else 1.0
    return optim.momentum_start + (optim.momentum - optim.momentum_start) * done


@dataclass(frozen=True)
class Phase:
    """What the model is like for a part of a run; each phase is a graph of its own for the compiler."""

    loops: bool
    quantizes: bool


def phase(train: TrainRecipe, step: int, elapsed: float) -> Phase:
    """The phase of step `step` (from 0): loops run after `loop_from` of the run, the last `qat_fraction` of it sees the
    quantizer."""
    by_steps = step / train.iterations if train.iterations else 0.0
    by_clock = elapsed / train.seconds if train.seconds else 0.0
    return _phase_at(train, max(by_steps, by_clock))


def phases(train: TrainRecipe) -> list[Phase]:
    """All phases of a run, in turn."""
    return list(dict.fromkeys(_phase_at(train, share) for share in sorted({0.0, train.loop_from, _qat_from(train)})))


def _phase_at(train: TrainRecipe, share: float) -> Phase:
    return Phase(share >= train.loop_from, bool(train.qat) and share >= _qat_from(train))


def _qat_from(train: TrainRecipe) -> float:
    return 1 - train.qat_fraction
