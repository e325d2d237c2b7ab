"""codec.backends.agree, codec.backends.select: faults are planted in a processor's kernels, and each is noticed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codec import cache
from codec.backends import agree as agreement
from codec.backends import select
from codec.backends.agree import TRIALS, agree
from codec.backends.cpu import backend as cpu_backend
from codec.backends.cpu import head, recall
from codec.backends.cpu.backend import CpuBackend, CpuSlots
from codec.exact.model import ExactModel
from codec.exact.reference import TorchBackend
from codec.numerics.tables import TURN_ROWS
from tests.codec.exact.test_recall import TABLES
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_pack, weights_with_columns

CONFIG = replace(EVERY_OPTION, window=160)
WEIGHTS = weights_with_columns(CONFIG)

FAR = np.array([1, -1])[:, None, None]
"""Turns the other way."""


class Replay:
    """A reference whose scores are computed once, for the same questions in the same order."""

    def __init__(self, reference: TorchBackend):
        self._reference, self.scores, self.at = reference, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reference, name)

    def score(self, *arguments: Any) -> np.ndarray:
        if self.at == len(self.scores):
            self.scores.append(self._reference.score(*arguments))
        self.at += 1
        return self.scores[self.at - 1]


REFERENCE = Replay(TorchBackend(ExactModel(WEIGHTS), TABLES))


def noticed(fast: CpuBackend) -> bool:
    REFERENCE.at = 0
    return not agree(fast, REFERENCE, CONFIG, TRIALS["cpu"])


def with_network(**changes: Callable[[Any], Any]) -> Callable[[CpuBackend, pytest.MonkeyPatch], None]:
    """Change entries of the constants that the kernels read."""

    def plant(fast: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {name: change(getattr(fast.network, name)) for name, change in changes.items()}
        fast.network = fast.network._replace(**values)

    return plant


def of_linear(field: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda linear: linear._replace(**{field: change(getattr(linear, field))})


def wrapped(module: Any, name: str, wrap: Callable[..., Any]) -> Callable[[CpuBackend, pytest.MonkeyPatch], None]:
    """Put `wrap(right, *arguments)` in the place of a kernel."""

    def plant(fast: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: wrap(right, *arguments))

    return plant


def read_block_0(run: Any, *arguments: Any) -> Any:
    """Attention that reads the keys of the first block in place of all others."""
    *others, keys, values, window = arguments
    keys[:, :, :, 1:] = keys[:, :, :, :1]
    return run(*others, keys, values, window)


def read_values_0(run: Any, *arguments: Any) -> Any:
    *others, keys, values, window = arguments
    values[:, :, :, 1:] = values[:, :, :, :1]
    return run(*others, keys, values, window)


def shift_window(by: int) -> Callable[..., Any]:
    return lambda run, *arguments: run(*arguments[:-1], arguments[-1] + by)


def shift_late_positions(run: Any, network: Any, x: Any, positions: Any, *others: Any) -> Any:
    """A ring that wraps to the wrong place: all positions from 192 on."""
    return run(network, x, np.where(positions >= 192, positions + 1, positions), *others)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CpuBackend.score

    def score(self: Any, inputs: Any, targets: Any, memory: Any = None, past: Any = None) -> Any:
        if past:
            past.last = np.zeros_like(past.last)
        return right(self, inputs, targets, memory, past)

    monkeypatch.setattr(CpuBackend, "score", score)


def odd_lengths(run: Any, network: Any, x: Any, *others: Any) -> Any:
    """The last row of an odd number is not computed."""
    hidden, steps = run(network, x, *others)
    if len(x) % 2 and len(x) > 1:
        hidden[-1] = 0
    return hidden, steps


def off_by(amount: int) -> Callable[..., Any]:
    return lambda right, *arguments: right(*arguments) + amount


def keep_wrong(fast: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuSlots, "keep", lambda self, slots: setattr(self, "_rows_of", self._rows_of[: len(slots)]))


def short_ring(fast: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_backend._cache
    monkeypatch.setattr(cpu_backend, "_cache", lambda c, slots, window, ahead=0: right(c, slots, window))


def with_fields(**changes: Callable[[Any], Any]) -> Callable[[CpuBackend, pytest.MonkeyPatch], None]:
    def plant(fast: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, change in changes.items():
            setattr(fast, name, change(getattr(fast, name)))

    return plant


FAULTS: dict[str, Callable[[CpuBackend, pytest.MonkeyPatch], None]] = {
    "block 0 of keys for all": wrapped(cpu_backend.network, "run", read_block_0),
    "block 0 of values for all": wrapped(cpu_backend.network, "run", read_values_0),
    "window one longer": wrapped(cpu_backend.network, "run", shift_window(1)),
    "window one shorter": wrapped(cpu_backend.network, "run", shift_window(-1)),
    "ring wraps to the wrong place": wrapped(cpu_backend.network, "run", shift_late_positions),
    "ring without room for a chunk": short_ring,
    "last row of an odd number": wrapped(cpu_backend.network, "run", odd_lengths),
    "token before a chunk": lambda fast, monkeypatch: forget(monkeypatch),
    "column steps of another row": with_network(query=of_linear("columns", lambda c: np.roll(c, 1, 1))),
    "no column steps": with_network(up=of_linear("has_columns", np.zeros_like)),
    "row steps": with_network(attention_out=of_linear("rows", lambda rows: np.roll(rows, 1, 1))),
    "sign of gated skips": with_network(skip_gates=np.negative),
    "skips that are not gated": with_network(gated=lambda gated: False),
    "weights of skips": with_network(skip_weights=lambda w: w[::-1] * 1.0625),
    "slope": with_network(slope=lambda slope: 0.25),
    "sign of the sigmoid": with_network(sigmoid=lambda table: 1 - table),
    "no gates": with_network(attention_gate=lambda gate: False),
    "own value is kept": with_network(xsa=np.zeros_like),
    "parallel layers": with_network(parallel=np.zeros_like),
    "residual mix": with_network(residual_mix=lambda mix: mix[:, ::-1].copy()),
    "rotations": with_network(turns=lambda turns: np.roll(turns, 1, 1)),
    "rotations of late positions": with_network(
        turns=lambda turns: np.concatenate((turns[:, :300], turns[:, :-300]), 1)
    ),
    "rotations of far positions": with_network(
        turns=lambda turns: np.concatenate((turns[:, :TURN_ROWS], turns[:, TURN_ROWS:] * FAR), 1)
    ),
    "scale of scores": with_network(score_scale=lambda scale: np.roll(scale, 1, 1)),
    "grid of values": with_network(value_scale=lambda scale: scale * 2),
    "scale of norms": with_network(norm_scale=np.ones_like),
    "scale of the MLP": with_network(mlp_scale=np.ones_like),
    "softcap": with_fields(_softcap=lambda table: np.roll(table, 1)),
    "weights of the coder": with_fields(octave=lambda octave: octave + np.uint32(1 << 10)),
    "products of the head": with_fields(head=of_linear("rows", lambda rows: rows * 1.001)),
    "intervals": wrapped(head, "intervals", off_by(1)),
    "search of the head": wrapped(head, "find", off_by(1)),
    "levels": wrapped(head, "levels", lambda right, x, cap: right(-x, cap)),
    "recall is not asked": wrapped(recall, "step", lambda right, *arguments: None),
    "recall of another slot": wrapped(recall, "step", lambda right, m, slots, *others: right(m, slots * 0, *others)),
    "slots that are kept": keep_wrong,
}


def test_right_kernels_agree():
    assert not noticed(CpuBackend(WEIGHTS, TABLES))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_processors_kernels_is_noticed(fault, monkeypatch):
    fast = CpuBackend(WEIGHTS, TABLES)
    FAULTS[fault](fast, monkeypatch)
    assert noticed(fast)


def test_a_verdict_is_kept_and_serves_no_other(monkeypatch, tmp_path, capsys):
    """The kernels are compared once; with another pack, machine or recall again."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(agreement, "agree", lambda *arguments: not asked.append(1))
    pack, other = tiny_pack(PLAIN), tiny_pack(PLAIN, seed=1)
    for weights, table, count in (
        (pack.weights, None, 1),
        (pack.weights, None, 1),
        (pack.weights, TABLES, 2),
        (other.weights, None, 3),
        (replace(pack.weights, sha256=""), None, 4),
    ):
        assert isinstance(select.make_backend(weights, "cpu", table), CpuBackend)
        assert len(asked) == count
    right = select.machine("cpu")
    for fact in right:
        monkeypatch.setattr(select, "machine", lambda device, fact=fact: {**right, fact: "another"})
        asked.clear()
        select.make_backend(pack.weights)
        assert len(asked) == 1
    monkeypatch.setattr(select, "machine", lambda device: right)
    monkeypatch.setattr(agreement, "agree", lambda *arguments: False)
    assert isinstance(select.make_backend(tiny_pack(PLAIN, seed=2).weights), TorchBackend)
    monkeypatch.setattr(agreement, "agree", lambda *arguments: True)
    assert isinstance(select.make_backend(tiny_pack(PLAIN, seed=2).weights), TorchBackend)
    assert "does not compute it as torch does" in " ".join(capsys.readouterr().err.split())
