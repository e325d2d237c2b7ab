"""codec.backends.agree: faults are planted in a GPU's kernels, interpreted on the processor, and each is noticed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from codec.backends.agree import Trial, agree
from codec.backends.cuda import kv_cache, network, recall, slots
from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.constants import Columns
from codec.backends.cuda.kernels import attention, elementwise, head
from codec.backends.cuda.page_table import Pages
from codec.exact.chunks import CHUNK_UNIT
from codec.exact.model import ExactModel
from codec.exact.reference import TorchBackend
from tests.codec.exact.test_recall import TABLES
from tests.support.helpers import EVERY_OPTION, weights_with_columns

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="plants faults in interpreted kernels"),
    pytest.mark.timeout(1800),
]

CONFIG = replace(
    EVERY_OPTION, window=72, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, vocab_size=96, bigram_buckets=8,
    bigram_dim=8, parallel_from=1, loop_start=0, loop_end=0, loop_count=1, xsa_layers=1, mlp_mult=2,
)  # fmt: skip
WEIGHTS = weights_with_columns(CONFIG)
TRIAL = Trial((3,), (6, 4), (4,), CHUNK_UNIT)
"""Slots whose window is gone round, one chunk and one window, as few as show most faults: a row takes long."""

LONG_TRIAL = Trial((9, 3), (CHUNK_UNIT + 16, 4), (70,), CHUNK_UNIT)
"""Two chunks, and slots of two pages that are gone round once."""

LATE = ("begin of a chunk", "page of a step", "pages of another slot", "token before a chunk")
"""Faults that a second chunk or page shows."""

PAGE = 64  # places, in place of 128, so that fewer steps reach a second page


def make() -> CudaBackend:
    model = CudaBackend(ExactModel(WEIGHTS), TABLES)
    model.heads = replace(model.heads, page=PAGE)
    return model


def noticed(fast: CudaBackend, trial: Trial = TRIAL) -> bool:
    reference = TorchBackend(ExactModel(WEIGHTS), TABLES)
    return not agree(fast, reference, CONFIG, trial)


Plant = Callable[[CudaBackend, pytest.MonkeyPatch], None]


def wrapped(owner: Any, name: str, wrap: Callable[..., Any]) -> Plant:
    """Put `wrap(right, *arguments)` in the place of a function of a kernel, or of what launches kernels."""

    def plant(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments, **settings: wrap(right, *arguments, **settings))

    return plant


def with_layers(**changes: Callable[[Any], Any]) -> Plant:
    """Change entries of the constants of all layers."""

    def plant(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        fast._layers = [
            replace(layer, **{name: change(getattr(layer, name)) for name, change in changes.items()})
            for layer in fast._layers
        ]

    return plant


def of_launch(kernel: str, **settings: Any) -> Plant:
    """Launch a kernel with other settings."""

    def wrap(right: Any, launched: Any, *arguments: Any, **given: Any) -> None:
        right(launched, *arguments, **{**given, **(settings if launched is getattr(elementwise, kernel) else {})})

    return wrapped(network, "launch", wrap)


def shifted_places(owner: str, by: int) -> Plant:
    """Keys and values of late positions are written to the wrong place."""

    def wrap(right: Any, self: Any, *arguments: Any, **settings: Any) -> None:
        right(self, *arguments, **settings)
        self.places = torch.where(self.positions >= 2, (self.places + by) % PAGE, self.places)

    def plant(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = getattr(kv_cache, owner)
        right = kind.__init__
        monkeypatch.setattr(kind, "__init__", lambda *arguments: wrap(right, *arguments))

    return plant


def first_page(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys and values go to a slot's first page."""
    right = kv_cache.Steps.__init__

    def init(self: Any, *arguments: Any) -> None:
        right(self, *arguments)
        self.slots = self._table[:, 0]

    monkeypatch.setattr(kv_cache.Steps, "__init__", init)


def stale_token(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fast.forward

    def forward(tokens: Any, past: Any = None) -> Any:
        if past:
            past.last = torch.zeros_like(past.last)
        return right(tokens, past=past)

    monkeypatch.setattr(fast, "forward", forward)


def with_model(name: str, change: Callable[[Any], Any]) -> Plant:
    def plant(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        setattr(fast._model, name, change(getattr(fast._model, name)))

    return plant


def other_columns(columns: Columns) -> Columns:
    return Columns(columns.steps.roll(1, 1), columns.mask)


def with_head(name: str, change: Callable[[Any], Any]) -> Plant:
    def plant(fast: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        setattr(fast, name, change(getattr(fast, name)))

    return plant


FAULTS: dict[str, Plant] = {
    "window one longer": wrapped(attention, "_sees", lambda f, query, key, window: f(query, key, window + 1)),
    "window one shorter": wrapped(attention, "_sees", lambda f, query, key, window: f(query, key, window - 1)),
    "begin of a chunk": wrapped(kv_cache, "attend_rows", lambda f, q, k, v, b, *a: f(q, k, v, 0, *a)),
    "scores": wrapped(attention, "_level", lambda f, score, scale, *a: f(score, scale * 0.5, *a)),
    "weights": wrapped(attention, "_weights", lambda f, below: f(below + below)),
    "mean": wrapped(attention, "_mean", lambda f, a, b, c, d, total: f(a, b, c, d, total + 1)),
    "page of a step": first_page,
    "place in a page": shifted_places("Steps", 1),
    "length of a step's keys": wrapped(kv_cache, "attend_step", lambda f, q, k, v, last, *a: f(q, k, v, last - 1, *a)),
    "pages of another slot": wrapped(Pages, "reach", lambda f, self, need: f(self, need * 0 + 1)),
    "token before a chunk": stale_token,
    "sign of the sigmoid": wrapped(elementwise, "_gates", lambda f, *a: 1.0 - f(*a)),
    "no gates": with_layers(gate=lambda gate: None),
    "slope": of_launch("activate_kernel", LEAKY=False),
    "column steps of down": with_layers(down=lambda matrix: replace(matrix, columns=matrix.columns.roll(1))),
    "column steps of attention's output": with_layers(
        attention_out=lambda matrix: replace(matrix, columns=matrix.columns.roll(1))
    ),
    "column steps": with_layers(columns=other_columns),
    "column steps of up": with_layers(up_columns=other_columns),
    "column steps of the head": with_head("_head_columns", other_columns),
    "sign of gated skips": with_model("skip_gates", torch.neg),
    "skips that are not gated": wrapped(network, "_Skip", lambda f, stream, weights, gates: f(stream, weights, None)),
    "weights of skips": with_model("skip_weights", lambda weights: weights * 1.0625),
    "own value is kept": of_launch("mixed_kernel", XSA=False),
    "residual mix": with_layers(residual_mix=lambda mix: mix.flip(0).contiguous()),
    "no residual mix": of_launch("residual_kernel", MIX=False),
    "parallel layers": with_layers(parallel=lambda parallel: False),
    "scale of norms": with_layers(norm=lambda norm: norm * torch.tensor([1.0625, 1.0])),
    "scale of scores": with_layers(score_scale=lambda scale: scale.flip(0)),
    "grid of values": with_layers(value_scale=lambda scale: scale * 2),
    "scale of the MLP": with_layers(mlp_scale=lambda scale: scale.roll(1)),
    "rotations": with_model("turns", lambda turns: turns.flip(0)),
    "rotations of far positions": wrapped(elementwise, "_turn_product", lambda f, a, b, c, d: f(a, b, c, -d)),
    "rounding": wrapped(elementwise, "snap_fixed", lambda f, x, scale: f(x, scale * 0.5)),
    "roots": wrapped(elementwise, "reciprocal_sqrt", lambda f, m: f(m) * 1.001),
    "products": wrapped(network, "multiply", lambda f, operand, matrix: f(operand, matrix) + 1),
    "limbs": wrapped(
        network, "multiply", lambda f, operand, matrix: f(torch.stack((operand[0],) * len(operand)), matrix)
    ),
    "weights of the head": wrapped(head, "exp2", lambda f, below, *a, **s: f(below + 1, *a, **s)),
    "cumulative frequencies": wrapped(head, "_cumulative", lambda f, below, symbol, *a: f(below, symbol + 1, *a)),
    "bytes of a decoder": wrapped(
        head, "_take_byte", lambda f, code, size, read, data, end: f(code, size, read + 1, data, end)
    ),
    "recall": wrapped(head, "_raise_levels", lambda f, row, agreed, similar, entries, one, top, *a: top),
    "state of a slot": wrapped(slots.CudaSlots, "keep", lambda f, self, slots: f(self, [1] * len(slots))),
    "memory of documents": wrapped(recall.Memory, "take", lambda f, *a: None),
}


@pytest.mark.long
@pytest.mark.parametrize("trial", [TRIAL, LONG_TRIAL], ids=["short", "long"])
def test_right_kernels_agree(trial):
    assert not noticed(make(), trial)


QUICK = ("scores", "rounding", "recall")
"""Faults of three modules of kernels, for every run of the tests."""


@pytest.mark.parametrize(
    "fault", [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.long) for fault in FAULTS]
)
def test_a_fault_in_a_gpus_kernels_is_noticed(fault, monkeypatch):
    fast = make()
    FAULTS[fault](fast, monkeypatch)
    assert noticed(fast, LONG_TRIAL if fault in LATE else TRIAL)
