"""codec.compress on what other people's checkpoints hold: kinds of tensors that weight codecs are reported to lose."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import codec
from codec.errors import BudgetError, CodecError, FormatError, MismatchError
from codec.pack import writer
from codec.pack.slab_coder import SlabCoder

State = dict[str, torch.Tensor]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).square().sum() / truth.double().square().sum())


def same_bits(found: torch.Tensor, truth: torch.Tensor) -> bool:
    plain = (found.resolve_conj().resolve_neg().contiguous(), truth.detach().resolve_conj().resolve_neg().contiguous())
    return (found.dtype, found.shape) == (truth.dtype, truth.shape) and torch.equal(
        *(t.reshape(-1).view(torch.uint8) for t in plain)
    )


TRIU = torch.triu(torch.ones(128, 128), 1)

EXACT: dict[str, torch.Tensor] = {
    "rotary frequencies of a long context": 1 / (1e7 ** (torch.arange(0, 128, 2).double() / 128)),
    "alibi slopes": torch.tensor([2.0 ** (-8 * i / 12) for i in range(1, 13)]),
    "running variances": torch.logspace(-12, 3, 256),
    "negative zeros": torch.tensor([-0.0, 0.0, 1.0]),
    "float16 subnormals": torch.arange(1, 400).half() * 6e-8,
    "bfloat16 layer scale": torch.full((384,), 1e-30, dtype=torch.bfloat16),
    "a large counter": torch.tensor(2**53 + 1),
    "a float counter": torch.tensor(16_777_215.0),
    "position ids": torch.arange(4096).expand(1, -1),
    "packed 4-bit weights": torch.randint(0, 256, (3000, 1), dtype=torch.uint8),
    "GPTQ's packed words": torch.randint(-(2**31), 2**31 - 1, (64, 96), dtype=torch.int64).int(),
    "uint16 halves": torch.arange(5000).to(torch.uint16).reshape(50, 100),
    "bool buffer": torch.tensor(True),
    "causal mask": torch.ones(1, 1, 256, 256).tril().bool(),
    "mask of minus infinity": torch.full((128, 128), -torch.inf).triu(1),
    "mask of float16's least number": (TRIU * torch.finfo(torch.float16).min).half(),
    "mask of float32's least number": TRIU * torch.finfo(torch.float32).min,
    "mask of -1e9": TRIU * -1e9,
    "identity": torch.eye(256),
    "identity in float64": torch.eye(96, dtype=torch.float64),
    "two values": torch.where(gaussian(100, 200) > 0, 0.3, -0.7),
    "constant in bfloat16": torch.full((300, 70), 0.1, dtype=torch.bfloat16),
    "zeros": torch.zeros(70, 80, 3),
    "one outlier": torch.zeros(100, 100).index_put((torch.tensor(5), torch.tensor(7)), torch.tensor(3e38)),
    "float64 beyond float32": gaussian(40, 40).double() * 1e300,
    "float64 below float32": gaussian(40, 40).double() * 1e-300,
    "float32 subnormals": gaussian(40, 40) * 1e-40,
    "complex filters": torch.complex(gaussian(30, 40), gaussian(30, 40, seed=1)),
    "conjugate view": torch.complex(gaussian(9, 9), gaussian(9, 9, seed=1)).conj(),
    "negated view": torch.complex(gaussian(9, 9), gaussian(9, 9, seed=1)).conj().imag,
    "parameter": nn.Parameter(gaussian(10)),
    "small kernel": gaussian(64, 1, 3, 3),
}
"""What comes back to the bit without being asked for, alone or beside weights that are quantized to a budget."""


@pytest.mark.parametrize("tensor", EXACT.values(), ids=EXACT)
def test_exact_without_being_asked(tensor):
    assert same_bits(codec.decompress(codec.compress({"t": tensor}))["t"], tensor)


def test_masks_cost_what_repeats():
    """By the frequencies of their values they would cost a bit a weight, and be quantized for less than that."""
    for value in (-1e9, -1e4, 0.3):
        assert len(codec.compress({"m": TRIU * value})) < 800


def test_exact_beside_weights_on_a_budget():
    """Cheap tensors stay exact whatever their scale; the budget is for the weights."""
    kept = {name: EXACT[name] for name in ("mask of float32's least number", "mask of -1e9", "identity", "one outlier")}
    weights = gaussian(200, 300) * 0.02
    found = codec.decompress(codec.compress({**kept, "w": weights}, budget=30_000))
    assert all(same_bits(found[name], tensor) for name, tensor in kept.items())
    assert relative(found["w"], weights) < 0.01


LOSSY: dict[str, tuple[torch.Tensor, float]] = {
    "rows of any scale": (gaussian(128, 128) * torch.logspace(-10, 10, 128)[:, None], 1e-3),
    "a row of zeros": (gaussian(100, 60) * (torch.arange(100) != 7)[:, None], 1e-3),
    "rare huge rows": (gaussian(100, 60) * torch.where(torch.arange(100) % 25 == 0, 1e20, 1.0)[:, None], 1e-3),
    "one column": (gaussian(5000, 1), 1e-3),
    "one row": (gaussian(1, 5000), 1e-3),
    "float8": (gaussian(64, 64).to(torch.float8_e4m3fn), 1e-3),
    "five dimensions": (gaussian(3, 5, 7, 2, 9), 1e-3),
}


@pytest.mark.parametrize(("tensor", "error"), LOSSY.values(), ids=LOSSY)
def test_every_row_keeps_its_precision(tensor, error):
    found = codec.decompress(codec.compress({"t": tensor}))["t"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    for row, truth in zip(found.double(), tensor.double(), strict=True):
        assert (row - truth).square().sum() <= error * truth.square().sum()


@pytest.mark.parametrize("shape", [(1, 40_000), (10, 4000), (200, 200)])
def test_thin_matrices_cost_and_err_like_others(shape):
    """A trellis path through one row is searched across columns, not greedily weight by weight."""
    weights = gaussian(*shape)
    blob = codec.compress({"w": weights}, bits={"w": 4})
    assert len(blob) * 8 / weights.numel() < 4.15
    assert relative(codec.decompress(blob)["w"], weights) < 0.0043


def test_no_tensor_is_given_up_for_the_others():
    """Adapters of a thousandth of the scale, and a budget of three bits: errors are alike."""
    state = {"w": gaussian(300, 200), "a": gaussian(8, 500, seed=1) * 1e-3, "b": gaussian(500, 8, seed=2) * 1e-5}
    count = sum(tensor.numel() for tensor in state.values())
    found = codec.decompress(codec.compress(state, budget=count * 3 // 8))
    errors = [relative(found[name], tensor) for name, tensor in state.items()]
    assert max(errors) < 2 * min(errors)


def test_ties():
    """Equal tensors are stored once; a transposed view, another shape, another sign of zero are other tensors."""
    w, zeros = gaussian(160, 128), torch.zeros(160, 128)
    state = {"a": w, "b": w, "c": w.clone(), "turned": w.T, "reshaped": w.reshape(128, 160), "+0": zeros, "-0": -zeros}
    blob = codec.compress(state, lossless=["*"])
    found = codec.decompress(blob)
    assert all(same_bits(found[name], tensor) for name, tensor in state.items())
    assert found["a"].data_ptr() == found["b"].data_ptr() == found["c"].data_ptr()
    assert codec.open(blob).twins.keys() == {"b", "c"}


def test_a_module_of_batch_norms_and_convolutions_loads_strictly():
    module = nn.Sequential(nn.Conv2d(3, 64, 7), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 1), nn.Linear(32, 50))
    module(gaussian(2, 3, 38, 38))[..., 0].sum().backward()
    found = codec.decompress(codec.compress(module.state_dict()))
    module.load_state_dict(found, strict=True)
    assert found["1.num_batches_tracked"] == 1


RULES: dict[str, Callable[[State], State]] = {
    "everything lossless": lambda s: codec.decompress(codec.compress(s, lossless=["*"])),
    "lossless wins over bits": lambda s: codec.decompress(codec.compress(s, lossless=["*"], bits={"*.weight": 2})),
    "lossless on a budget": lambda s: codec.decompress(codec.compress(s, budget=10**6, lossless=["*"])),
    "NaN where asked for": lambda s: codec.decompress(codec.compress(s, lossless=["*nan*", "*weight"])),
}


@pytest.mark.parametrize("run", RULES.values(), ids=RULES)
def test_lossless_patterns(run):
    state = {"a.weight": gaussian(50, 50), "nan": torch.tensor([torch.nan, -torch.nan])}
    found = run(state)
    assert all(same_bits(found[name], tensor) for name, tensor in state.items())


def test_other_patterns():
    state = {"a.weight": gaussian(64, 64), "b.weight": gaussian(64, 64, seed=1), "b.bias": gaussian(64)}
    assert codec.decompress(codec.compress(state, skip=["b.*"])).keys() == {"a.weight"}
    assert codec.decompress(codec.compress(state, skip=["*"])) == {}
    found = codec.decompress(codec.compress(state, bits={"*.weight": 6, "b.*": 2}))
    assert relative(found["a.weight"], state["a.weight"]) < 1e-3 < 0.05 < relative(found["b.weight"], state["b.weight"])
    assert relative(found["b.bias"], state["b.bias"]) > 0  # a rate that is asked for applies to vectors, too


REFUSED: dict[str, tuple[type[CodecError], str, Callable[[], object]]] = {
    "a step number": (FormatError, "epoch", lambda: codec.compress({"w": gaussian(3), "epoch": 3})),  # type: ignore[dict-item]
    "an optimizer": (FormatError, "optimizer", lambda: codec.compress({"optimizer": {"lr": 1}})),  # type: ignore[dict-item]
    "a module": (FormatError, "state_dict", lambda: codec.compress(nn.Linear(2, 2))),  # type: ignore[arg-type]
    "sparse": (FormatError, "adjacency", lambda: codec.compress({"adjacency": torch.eye(4).to_sparse()})),
    "meta": (FormatError, "lazy", lambda: codec.compress({"lazy": torch.empty(4, device="meta")})),
    "bits of integers": (MismatchError, "ids", lambda: codec.compress({"ids": torch.arange(9)}, bits={"ids": 4})),
    "bits of nothing": (MismatchError, "head", lambda: codec.compress({"w": gaussian(3)}, bits={"*head*": 4})),
    "a text budget": (FormatError, "budget", lambda: codec.compress({"w": gaussian(3)}, budget="1M")),  # type: ignore[arg-type]
    "a budget of nothing": (FormatError, "budget", lambda: codec.compress({"w": gaussian(3)}, budget=0)),
    "a budget below the exact part": (
        BudgetError,
        "the smallest pack has",
        lambda: codec.compress({"v": gaussian(9000)}, budget=9000),
    ),
    "a calibration path": (FormatError, "calibration", lambda: codec.compress({"w": gaussian(3)}, calibration="c")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("kind", "told", "run"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_what_is_wrong(kind, told, run):
    with pytest.raises(kind, match=told):
        run()


def test_enormous_budgets_are_met():
    state = {"w": gaussian(64, 64)}
    for budget in (10**400, float("inf")):
        assert relative(codec.decompress(codec.compress(state, budget=budget))["w"], state["w"]) < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize(("room", "most"), [(0, 1), (3 * 4096 * 16, 3), (1 << 27, 4)])
def test_slabs_side_by_side_are_bounded_by_memory(monkeypatch, room, most):
    """Bound slabs for any number of cores; half of the largest tensor's bytes come on top of the room: 512 elements."""
    running, seen, lock, code = [0], [], threading.Lock(), SlabCoder.__call__

    def counted(self, slab, tensor):
        with lock:
            running[0] += 1
            seen.append(running[0])
        time.sleep(0.02)
        found = code(self, slab, tensor)
        with lock:
            running[0] -= 1
        return found

    monkeypatch.setattr(SlabCoder, "__call__", counted)
    monkeypatch.setattr(writer, "_ROOM", room)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    codec.compress({f"w{i}": gaussian(64, 64, seed=i) for i in range(12)})
    assert max(seen) == most
