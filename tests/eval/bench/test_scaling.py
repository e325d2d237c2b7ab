"""eval.bench.scaling: the simulated time is that of steps counted one by one; costs are those of the speeds."""

import numpy as np
import pytest

from eval.bench import scaling
from eval.bench.scaling import cost_rows, decode_seconds, documents, picture, speed_ups, together
from eval.figures import svg


def slowly(lengths: list[int], slots: int, fixed: float) -> float:
    """The same simulation, token by token."""
    waiting = sorted(lengths)
    running: list[list[int]] = []
    seconds = 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append([waiting.pop(), 0])
        share = fixed + (1 - fixed) * len(running) / 2048
        seconds += share * scaling._STEP_AT_0 + scaling._KEY * sum(at for _, at in running)
        running = [[left - 1, at + 1] for left, at in running if left > 1]
    return seconds


@pytest.mark.parametrize("fixed", scaling.FIXED)
def test_steps_are_counted(monkeypatch, fixed):
    monkeypatch.setattr(scaling, "MOST", 3)
    lengths = np.random.default_rng(0).integers(1, 40, 17)
    assert decode_seconds(lengths, fixed) == pytest.approx(slowly(lengths.tolist(), 3, fixed))
    assert decode_seconds(np.array([5]), fixed) == pytest.approx(slowly([5], 1, fixed))


def test_the_step_is_the_measured_one():
    """2,048 slots at positions 64 and 1,500: 476,000 and 136,000 tokens a second."""
    for position, speed in ((64, 476e3), (1500, 136e3)):
        assert 2048 / (scaling._STEP_AT_0 + scaling._KEY * 2048 * position) == pytest.approx(speed, rel=0.01)


def test_several_gpus():
    lengths = documents(400_000)
    assert 400_000 <= lengths.sum() < 403_000
    one = together(lengths, 1, 1, 0.5)
    assert one == pytest.approx(decode_seconds(lengths, 0.5))
    assert one / 4 < together(lengths, 4, 1, 0.5) < one
    found = {1.0: speed_ups(400_000, (1, 2))}
    assert all(pairs[0] == (1, 1) for pairs in found[1.0].values())
    assert svg(picture({1.0: found[1.0], 2.0: found[1.0]}, (1, 2))).startswith(b"<?xml")


def test_costs():
    encode, decode = cost_rows(3.0)
    assert encode == ("encode", 862e3, pytest.approx(81.5, abs=0.1), pytest.approx(3 * encode[2]))
    assert decode[2] / encode[2] == pytest.approx(862 / 239)
    assert cost_rows(1.0, 5e11)[0][2] == pytest.approx(encode[2] / 2)
