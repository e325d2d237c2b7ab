"""codec.pack.reader: what comes back, deterministic bytes, exact budgets, and files that lie."""

import hashlib
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import codec
from codec import cache
from codec.errors import BudgetError, CodecError, FormatError, MismatchError
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from codec.numerics.widths import LARGEST_WEIGHT
from codec.pack import reader
from codec.pack.change import with_tunings, with_vectors
from codec.pack.container import read_container, write_container
from codec.pack.parts.part import quantized_part
from codec.quantization import rate
from codec.quantization.calibration import Moments
from codec.quantization.quantized import Quantized, Tuning
from codec.quantization.quantizers import Matrix, RowAbsmax
from codec.quantization.sensitivity import SensitivityGrid
from codec.zstd import shrink, unshrink
from tests.support.families import FAMILIES, family_pack
from tests.support.helpers import EVERY_OPTION, PLAIN, ROOT, lossless_tokenizer, random_weights, tiny_blob, tiny_pack
from trainer.data.sample import sp1024
from trainer.fit.calibrate import calibrate
from trainer.model.gpt import GPT

State = dict[str, torch.Tensor]
NO_MOMENTS = Moments(np.zeros((0, 0), np.float32), np.zeros(0, np.float32))


def test_a_model_comes_back():
    weights, opened = random_weights(EVERY_OPTION), tiny_pack(EVERY_OPTION)
    assert opened.config == EVERY_OPTION
    assert opened.tokenizer is not None
    assert opened.tokenizer.model == sp1024().model
    assert opened.size == len(tiny_blob(EVERY_OPTION))
    assert opened.sha256 == hashlib.sha256(tiny_blob(EVERY_OPTION)).hexdigest()
    assert opened.parameter_count == sum(t.numel() for t in weights.values())
    state = opened.state_dict()
    assert set(state) == set(weights)
    for name, parameter in parameters(EVERY_OPTION).items():
        found, original = state[name], weights[name]
        assert (found.shape, found.dtype) == (original.shape, torch.float32)
        if parameter.role == "vector":
            assert torch.equal(found, original.half().float())
        else:
            expected = RowAbsmax(8)(Matrix(name, "matrix", original.numpy(), NO_MOMENTS))
            assert np.array_equal(opened.matrices[name].symbols, expected.symbols)
            assert np.array_equal(found.numpy(), expected.symbols.astype(np.float32) * expected.rows[:, None])
    decompressed = codec.decompress(tiny_blob(EVERY_OPTION))
    assert all(torch.equal(decompressed[name], state[name]) for name in state)


def test_a_pack_of_a_pack_is_the_same_bytes():
    """What was quantized once quantizes to itself, so a pack can be opened and packed again without loss."""
    assert codec.compress(tiny_pack().state_dict(), EVERY_OPTION, sp1024()) == tiny_blob()


def fixed_state() -> State:
    integers = torch.arange(128 * 64).reshape(128, 64)
    return {
        "matrix": ((integers * 7919 % 251) - 125) / 64 * (1 + torch.arange(128)[:, None] / 128),
        "vector": torch.arange(10) / 3,
        "counts": torch.arange(5),
    }


def test_golden_bytes():
    """A new digest here means a new format version. Sections under zstandard, whose own bytes may vary, are opened."""
    sections = read_container(codec.compress(fixed_state()))
    assert list(sections) == ["tensors", "header", "config", "tokenizer"]
    header = unshrink(sections["header"], 1 << 20, "header")
    entries = json.loads(header)["tensors"]
    content = json.dumps(entries).encode() + sections["tensors"][: entries[0]["parts"][0]]
    assert hashlib.sha256(content).hexdigest()[:16] == "8dd143e14fcd8811"
    reverse = dict(reversed(fixed_state().items()))
    assert codec.compress(reverse) == codec.compress(fixed_state())


PLAIN_STATES: dict[str, State] = {
    "none": {},
    "scalar": {"a": torch.tensor(3.5)},
    "vectors": {"a": torch.arange(7.0), "b": torch.zeros(0), "c": torch.full((3,), 1e6)},
    "integers": {
        str(dtype): torch.arange(-3, 5).to(dtype)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    },
    "large integers": {"a": torch.tensor([2**62, -(2**63)]), "b": torch.zeros(100, 100, dtype=torch.int64)},
    "odd types": {"a": torch.arange(5, dtype=torch.bfloat16), "b": torch.arange(5.0, dtype=torch.float64)},
    "empty": {"a": torch.zeros(0, 5), "b": torch.zeros(2**28 + 1, 0), "c": torch.zeros(2, 0, 3, dtype=torch.int32)},
    "strided": {"a": torch.arange(20).reshape(4, 5).T, "b": torch.arange(12.0).reshape(3, 4)[:, ::2]},
    "names": {"": torch.ones(2), "é/…\n": torch.ones(3), "x" * 300: torch.ones(1)},
    "gradient": {"a": torch.ones(3, requires_grad=True)},
}


@pytest.mark.parametrize("state", PLAIN_STATES.values(), ids=PLAIN_STATES)
def test_small_tensors_come_back_exactly(state):
    opened = codec.open(codec.compress(state))
    assert (opened.config, opened.tokenizer) == (None, None)
    found = opened.state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("shape", [(64, 64), (4096, 1), (1, 5000), (16, 8, 3, 33), (20, 5, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_tensors_of_any_shape_are_quantized_by_row(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = codec.decompress(codec.compress({"w": tensor}))["w"]
    assert (found.shape, found.dtype) == (tensor.shape, dtype)
    flat = tensor.double().reshape(shape[0], -1)
    step = flat.abs().amax(1, keepdim=True) / 127 * 2**0.25
    rounding = flat.abs() * torch.finfo(dtype).eps
    assert ((found.reshape(shape[0], -1) - flat).abs() <= step * 0.501 + rounding).all()


@pytest.mark.parametrize(
    "state",
    [
        {"w": 127 * torch.eye(1024)},
        {"w": torch.cat((torch.ones(1, 512), -torch.ones(2048, 512)))},
        {"a": torch.eye(64), "w": torch.zeros(1000, 1000)},
    ],
    ids=["powers of two", "constant", "zeros"],
)
def test_weights_that_cost_almost_nothing(state):
    blob = codec.compress(state)
    assert len(blob) < 3000
    for name, tensor in codec.decompress(blob).items():
        assert torch.allclose(tensor, state[name], rtol=2**-11)


def test_refused_weights():
    for value in (torch.nan, torch.inf):
        broken = torch.zeros(32, 32).index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(value))
        with pytest.raises(FormatError, match=r"tensor blocks\.1\.attn\.c_q\.weight: weight \[3, 4\]"):
            codec.compress({**random_weights(PLAIN), "blocks.1.attn.c_q.weight": broken}, PLAIN)
        with pytest.raises(FormatError, match=r"tensor blocks\.0\.attn_scale: not all values are finite"):
            codec.compress({**random_weights(PLAIN), "blocks.0.attn_scale": torch.full((32,), value)}, PLAIN)
    nan = torch.full((64, 64), torch.nan)
    for state in ({"v": nan[0]}, {"v": nan}):
        with pytest.raises(FormatError, match=r"tensor v: .*list the tensor as lossless"):
            codec.compress(state)
        assert codec.decompress(codec.compress(state, lossless=["v"]))["v"].isnan().all()
    with pytest.raises(FormatError, match="too large for float32"):
        codec.compress({"v": torch.tensor([1e300], dtype=torch.float64)}, vectors="float16")


def test_things_that_do_not_belong_together():
    weights = random_weights(PLAIN)
    with pytest.raises(MismatchError, match=r"tensor blocks\.0\.attn_scale: found none, the config expects \(32,\)"):
        codec.compress({k: v for k, v in weights.items() if k != "blocks.0.attn_scale"}, PLAIN)
    with pytest.raises(MismatchError, match="tensor extra: found"):
        codec.compress({**weights, "extra": torch.ones(1)}, PLAIN)
    with pytest.raises(MismatchError, match=r"found \(1024, 32\), the config expects \(512, 32\)"):
        codec.compress(weights, replace(PLAIN, vocab_size=512))
    small = replace(PLAIN, vocab_size=512)
    with pytest.raises(MismatchError, match="tokenizer has 1024 tokens, the model 512"):
        codec.compress(random_weights(small), small, sp1024())
    with pytest.raises(MismatchError, match="weights only"):
        codec.open(codec.compress(weights, PLAIN)).exact()


def test_tokenizer_as_bytes():
    assert codec.compress(random_weights(EVERY_OPTION), EVERY_OPTION, sp1024().model) == tiny_blob(EVERY_OPTION)
    with pytest.raises(FormatError, match="not a SentencePiece model"):
        codec.compress({}, None, b"junk")


def test_budget_is_exact():
    """Any budget is met, and nearly used up; one that cannot be met says what could."""
    weights = random_weights(EVERY_OPTION)
    least = 0
    full = len(tiny_blob(EVERY_OPTION))
    for budget in (full - 1, full - 5000, full - 12_345):
        size = len(codec.compress(weights, EVERY_OPTION, sp1024(), budget))
        assert budget - rate.slack_of(budget) <= size <= budget
    for budget in (5_000, 1):
        with pytest.raises(BudgetError, match=f"budget of {budget} bytes: the smallest pack has") as caught:
            codec.compress(weights, EVERY_OPTION, sp1024(), budget)
        least = caught.value.smallest
        assert f"has {least};" in str(caught.value)
        assert budget < least < full - 12_345
    assert len(codec.compress(weights, EVERY_OPTION, sp1024(), least)) <= least
    same = len(codec.compress({"v": torch.ones(3)}, budget=10_000))
    assert len(codec.compress({"v": torch.ones(3)}, budget=same)) == same
    with pytest.raises(BudgetError) as caught:
        codec.compress({"v": torch.ones(3)}, budget=same - 1)
    assert caught.value.smallest == same


def test_a_budget_beyond_all_use():
    """The finest step of use is taken, and the exact model can still be built."""
    blob = codec.compress(random_weights(PLAIN), PLAIN, sp1024(), budget=16_000_000)
    opened = codec.open(blob)
    assert len(blob) < 16_000_000
    assert max(int(np.abs(matrix.symbols).max()) for matrix in opened.matrices.values()) > 1000
    opened.exact()


def test_columns_that_read_very_large_activations():
    """Weights behind them want steps so fine that no compiled kernel knows the integers; a model's are bounded."""
    x = np.ones((1, PLAIN.hidden_dim), np.float32)
    x[0, 3] = 1e6
    name = "blocks.0.mlp.proj.weight"
    one = np.full(PLAIN.model_dim, 1e-4, np.float32)
    moments = {name: Moments(x.T @ x, one)}

    def fine(matrix: Matrix) -> Quantized:
        given = replace(matrix, moments=moments[name]) if matrix.name == name else matrix
        return SensitivityGrid(0.05)(given)

    blob = codec.compress(random_weights(PLAIN), PLAIN, sp1024(), quantizer=fine)
    symbols = np.abs(codec.open(blob).matrices[name].symbols)
    assert LARGEST_WEIGHT / 8 < symbols[:, 3].max() <= LARGEST_WEIGHT


def gaussian_state() -> State:
    return {"w": torch.randn(128, 160, generator=torch.Generator().manual_seed(3))}


@pytest.mark.parametrize("budget", [6_000, 10_000, 20_000, 30_000])
def test_budgets_of_plain_weights(budget):
    """Twice the bytes, a far smaller error."""
    state = gaussian_state()
    blob = codec.compress(state, budget=budget)
    assert budget - 200 <= len(blob) <= budget
    opened = codec.open(blob)
    assert opened.matrices["w"].grid is not None
    (part,) = opened.manifest["tensors"][0]["parts"]
    assert len(blob) - part < 300
    error = (opened.state_dict()["w"] - state["w"]).square().mean()
    assert error < 2 * 4 ** -(8 * part / state["w"].numel())


@pytest.mark.parametrize("states", [0, 4, 8, 64])
def test_grids_come_back(states):
    """Steps and integers of a quantizer as they were, whatever the moments."""
    kept: list[Quantized] = []

    def keep(matrix: Matrix) -> Quantized:
        kept.append(SensitivityGrid(1.5, states)(matrix))
        return kept[-1]

    x = torch.randn(300, 160, generator=torch.Generator().manual_seed(4)).numpy()
    moments = {"w": Moments(x.T @ x, np.diag(np.geomspace(1e-9, 1, 128).astype(np.float32)))}
    found = codec.open(codec.compress(gaussian_state(), calibration=moments, quantizer=keep)).matrices["w"]
    assert found.states == states
    assert (found.on is None) == (states == 0)
    if found.on and kept[0].on:
        assert all(np.array_equal(a, b) for a, b in zip(found.on, kept[0].on, strict=True))
        assert not found.on.rows.all()
    assert np.array_equal(found.symbols, kept[0].symbols)
    assert np.array_equal(found.dequantize(), kept[0].dequantize())


def test_calibration_lowers_the_divergence():
    """Of next-token distributions on other text, at equal bytes; and moments of another model are refused."""
    model = GPT(EVERY_OPTION)
    model.load_state_dict(random_weights(EVERY_OPTION))
    generator = torch.Generator().manual_seed(7)
    chances = 1 / (1 + torch.arange(1024.0))
    seen, other = (torch.multinomial(chances, 32 * 32, True, generator=generator).view(32, 32) for _ in range(2))
    calibration = calibrate(model, [seen])

    def divergence(known: dict[str, Moments] | None) -> float:
        rounded = GPT(EVERY_OPTION)
        blob = codec.compress(random_weights(EVERY_OPTION), EVERY_OPTION, budget=35_000, calibration=known)
        assert 35_000 - rate.slack_of(35_000) <= len(blob) <= 35_000
        rounded.load_state_dict(codec.decompress(blob))
        with torch.no_grad():
            truth, found = (m(other).log_softmax(-1) for m in (model, rounded))
        return float((truth.exp() * (truth - found)).sum(-1).mean())

    assert divergence(calibration) < 0.8 * divergence(None)
    with pytest.raises(MismatchError, match=r"calibration of tok_emb\.weight"):
        codec.compress(random_weights(PLAIN), PLAIN, calibration={"tok_emb.weight": NO_MOMENTS})


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_rows_of_a_hash_table_that_no_text_visits_keep_something(share):
    """The calibration's text is a sample: another text visits other rows, which must not have become zeros."""
    config = replace(PLAIN, bigram_buckets=2048, bigram_dim=32)
    visits = (np.arange(2048) % 10 >= 10 * share).astype(np.float32)
    calibration = {
        name: Moments(np.eye(entry.shape[1], dtype=np.float32), np.ones(entry.shape[0], np.float32))
        for name, entry in parameters(config).items()
        if entry.role != "vector"
    }
    calibration["bigram.embed.weight"] = Moments(np.eye(32, dtype=np.float32), visits)
    weights = random_weights(config)
    blob = codec.compress(weights, config, calibration=calibration, quantizer=SensitivityGrid(0.05))
    found, table = codec.decompress(blob)["bigram.embed.weight"], weights["bigram.embed.weight"]
    errors = (found - table).square().mean(1)
    assert found.any(1).all()
    assert errors[visits > 0].mean() < errors[visits == 0].mean() < 0.5 * table.square().mean()


SMALL_MATRIX = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
SMALL = codec.compress({"w": SMALL_MATRIX, "v": torch.arange(9), "s": torch.ones(3)})


def test_other_vectors():
    """In float32 where float16 would overflow; the integers stay, and so does everything else."""
    vectors = {"v": torch.arange(9) * 2, "s": torch.tensor([1e6, -0.5, 2.0])}
    found, before = codec.open(with_vectors(SMALL, vectors)), codec.open(SMALL)
    assert torch.equal(found.state_dict()["s"], vectors["s"])
    assert torch.equal(found.state_dict()["v"], vectors["v"])
    assert torch.equal(found.state_dict()["w"], before.state_dict()["w"])
    same = codec.open(with_vectors(SMALL, {"v": torch.arange(9), "s": torch.ones(3)})).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in before.state_dict().items())
    for wrong in ({"s": torch.ones(3)}, {**vectors, "s": torch.ones(4)}, {**vectors, "w": torch.ones(64, 64)}):
        with pytest.raises(MismatchError, match="pass those of its model"):
            with_vectors(SMALL, wrong)
    with pytest.raises(FormatError, match="tensor s: not all values are finite"):
        with_vectors(SMALL, {**vectors, "s": torch.full((3,), float("nan"))})


def test_other_tunings():
    """Steps change by 1 / 256 of themselves for each unit; the integers and all other tensors stay."""
    grid = SensitivityGrid(0.3)
    blob = codec.compress({"a": SMALL_MATRIX, "v": torch.arange(9.0), "z": SMALL_MATRIX + 1}, quantizer=grid)
    tuning = Tuning(np.arange(-63, 1, dtype=np.int32), np.full(64, 127, np.int32))
    tuned = with_tunings(blob, {"a": tuning})
    before, after = codec.open(blob), codec.open(tuned)
    one, other = before.matrices["a"], after.matrices["a"]
    assert np.array_equal(one.symbols, other.symbols)
    assert np.allclose(other.rows, one.rows * (1 + np.arange(-63, 1) / 256), rtol=1e-6)
    assert np.allclose(other.columns, one.columns * (1 + 127 / 256), rtol=1e-6)
    assert all(torch.equal(after.tensor(name), before.tensor(name)) for name in ("v", "z"))
    assert len(blob) < len(tuned) < len(blob) + 128
    zero = np.zeros(64, np.int32)
    same = codec.open(with_tunings(tuned, {"a": Tuning(zero, zero)}))
    assert torch.equal(same.tensor("a"), before.tensor("a"))
    for wrong in ({"b": tuning}, {"v": tuning}, {"a": Tuning(zero[1:], zero)}):
        with pytest.raises(MismatchError, match=r"no such matrices|or not so many"):
            with_tunings(blob, wrong)
    with pytest.raises(MismatchError, match="no steps by row and column"):
        with_tunings(codec.compress({"a": SMALL_MATRIX}, quantizer=RowAbsmax(4)), {"a": tuning})
    wide = with_tunings(blob, {"a": Tuning(zero - 128, zero)})
    with pytest.raises(FormatError, match="tensor a: tunings beyond 127"):
        codec.decompress(wide)


def test_every_flipped_byte_is_found():
    for position in range(len(SMALL)):
        for flip in (1, 128, 255):
            broken = bytearray(SMALL)
            broken[position] ^= flip
            with pytest.raises(CodecError):
                codec.open(bytes(broken))


def test_every_truncation_is_found():
    for size in range(len(SMALL)):
        with pytest.raises(CodecError):
            codec.open(SMALL[:size])


Header = dict[str, Any]


def forged(blob: bytes, header: Callable[[Header], Any] = lambda h: h, **sections: bytes) -> bytes:
    """A pack with valid checksums whose header and sections are others."""
    found = read_container(blob)
    text = json.loads(unshrink(found["header"], 1 << 24, "header"))
    changed = header(text)
    found["header"] = shrink(json.dumps(text if changed is None else changed).encode())
    return write_container({**found, **sections})


def entry(kind: str, **changes: Any) -> Callable[[Header], Any]:
    def change(header: Header) -> None:
        header[kind][0].update(changes)

    return change


def without(kind: str, key: str) -> Callable[[Header], Any]:
    return lambda header: header[kind][0].pop(key) and None


def assigned(**values: Any) -> Callable[[Header], Any]:
    return lambda header: {**header, **values}


HUGE = 1 << 28
WEIGHT = {"name": "a", "dtype": "float32", "parts": [0]}

LIES: dict[str, Callable[[Header], Any]] = {
    "no object": lambda h: [],
    "a string": lambda h: "header",
    "null": lambda h: {"arithmetic": None},
    "future arithmetic": assigned(arithmetic=99),
    "no tensors": lambda h: h.pop("tensors") and None,
    "tensors null": assigned(tensors=None),
    "tensors object": assigned(tensors={"a": 1}),
    "tensors numbers": assigned(tensors=[1, 2]),
    "vectors missing": assigned(vectors=[]),
    "vectors strings": assigned(vectors=["a"]),
    "name number": entry("tensors", name=3),
    "name surrogate": entry("tensors", name="\ud800"),
    "name twice": entry("tensors", name="v"),
    "no name": without("tensors", "name"),
    "shape number": entry("tensors", shape=4096),
    "shape empty": entry("tensors", shape=[]),
    "shape negative": entry("tensors", shape=[-64, -64]),
    "shape floats": entry("tensors", shape=[64.0, 64.0]),
    "shape booleans": entry("tensors", shape=[True, 4096]),
    "shape larger": entry("tensors", shape=[64, 4096]),
    "shape huge": entry("tensors", shape=[HUGE, HUGE]),
    "shape rows of nothing": entry("tensors", shape=[HUGE, 0]),
    "shape nothing of nothing": entry("tensors", shape=[0, HUGE, HUGE, HUGE]),
    "shape long": entry("tensors", shape=[1] * 65),
    "shape very long": entry("tensors", shape=[HUGE] * 100_000),
    "parts none": entry("tensors", parts=[]),
    "parts two": entry("tensors", parts=[10, 10]),
    "parts negative": entry("tensors", parts=[-1]),
    "parts text": entry("tensors", parts=["1"]),
    "parts huge": entry("tensors", parts=[1 << 60]),
    "parts shorter": entry("tensors", parts=[10]),
    "no parts": without("tensors", "parts"),
    "batches none": assigned(batches=[]),
    "batches of nothing": assigned(batches=[[0, 0]]),
    "batches of others": assigned(batches=[[2, 40]]),
    "batches text": assigned(batches="ab"),
    "twin of nothing": assigned(twins={"a": "b"}),
    "twin of itself": assigned(twins={"w": "w"}),
    "twins a list": assigned(twins=["w"]),
    "files outside": assigned(files={"../x": 3}),
    "files absolute": assigned(files={"/x": 3}),
    "files in folders": assigned(files={"a/x": 3}),
    "files that are the weights": assigned(files={"model.safetensors": 3}),
    "files without a section": assigned(files={"x": 3}),
    "metadata numbers": assigned(metadata={"a": 1}),
    "dtype object": entry("vectors", dtype="object"),
    "dtype pickle": entry("vectors", dtype="O"),
    "dtype other": entry("vectors", dtype="float65"),
    "kept other": entry("vectors", kept="str"),
    "no dtype": without("vectors", "dtype"),
    "vector shape": entry("vectors", shape=[4]),
    "vector huge": entry("vectors", shape=[HUGE]),
    "vector nothing": entry("vectors", shape=[0, HUGE, HUGE, HUGE]),
    "many small tensors": assigned(tensors=[{**WEIGHT, "name": str(i), "shape": [1 << 20]} for i in range(300)]),
    "many empty tensors": assigned(tensors=[{**WEIGHT, "name": str(i), "shape": [1 << 20, 0]} for i in range(300)]),
    "a long claim": assigned(tensors=[{**WEIGHT, "shape": [1 << 14, (1 << 14) - 1]}]),
    "a claim in one piece": assigned(whole=True, tensors=[{**WEIGHT, "shape": [1 << 14, (1 << 14) - 1]}]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_headers_that_lie(lie):
    """Refused with a typed error, and without the memory that they claim to need."""
    blob = forged(SMALL, lie)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=r"^pack: |recall"):
            opened = codec.open(blob)
            for name in opened.names:
                opened.tensor(name)
            _ = opened.files
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


def test_headers_that_are_no_json():
    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"NaN"):
        with pytest.raises(CodecError):
            codec.open(write_container({**read_container(SMALL), "header": shrink(text)}))
    for section in (b"", b"junk"):
        with pytest.raises(CodecError):
            codec.open(write_container({**read_container(SMALL), "header": section}))


@pytest.mark.parametrize("name", ["header", "config", "tokenizer", "tensors"])
def test_sections_that_are_missing_or_other_ones(name):
    sections = read_container(tiny_blob())
    with pytest.raises(FormatError, match=rf"section.* \[?'{name}'\]? (are|is) missing"):
        codec.open(write_container({k: v for k, v in sections.items() if k != name}))
    for other in (b"\0" * 10, shrink(b"junk"), shrink(bytes(5_000_000)), sections[name][: len(sections[name]) // 2]):
        with pytest.raises(CodecError):
            codec.open(write_container({**sections, name: other}))


def test_steps_that_are_not_finite():
    huge = Quantized(np.ones((64, 64), np.int32), np.full(64, np.inf, np.float32))
    with pytest.raises(FormatError, match="steps are not finite"):
        quantized_part(huge)


def test_configs_that_lie():
    blob = tiny_blob(PLAIN)
    for changed in (replace(PLAIN, num_layers=3), replace(PLAIN, model_dim=64), replace(PLAIN, skips="gated")):
        with pytest.raises(MismatchError, match="the config expects"):
            codec.open(write_container({**read_container(blob), "config": shrink(changed.to_json().encode())}))
    for text in (b"{}}", b"[]", b'{"layers": 3}', b'{"window": "8"}', b'{"rope_base": NaN}', b"\xff", b"[" * 100_000):
        with pytest.raises(CodecError):
            codec.open(write_container({**read_container(blob), "config": shrink(text)}))
    tokenizer = shrink(sp1024().model)
    small = replace(PLAIN, vocab_size=512)
    sections = read_container(codec.compress(random_weights(small), small, lossless_tokenizer()))
    with pytest.raises(MismatchError, match="tokenizer has 1024 tokens, the model 512"):
        codec.open(write_container({**sections, "tokenizer": tokenizer}))


def test_matrices_kept_as_vectors():
    """Shapes that the config expects, in the wrong place."""
    config = ModelConfig(vocab_size=4, window=2, num_layers=1, model_dim=2, num_heads=1, num_kv_heads=1)
    blob = codec.compress(random_weights(config), config)

    def misplace(header: Header) -> None:
        moved = header["tensors"].pop(0)
        header["vectors"].append({"name": moved["name"], "shape": moved["shape"], "dtype": "float32"})
        header["batches"].append([1, moved["parts"][0]])

    with pytest.raises(FormatError, match=r"matrices kept as vectors.*'tok_emb\.weight'"):
        codec.open(forged(blob, misplace))


@given(
    st.dictionaries(st.text(max_size=5).filter(lambda n: n.isprintable()), st.lists(st.floats(-6e4, 6e4), max_size=5))
)
def test_any_vectors(values):
    state = {name: torch.tensor(numbers, dtype=torch.float16) for name, numbers in values.items()}
    found = codec.decompress(codec.compress(state))
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_bytes_that_repeat_come_back_whatever_their_width():
    """Repeated rows of one, two and four bytes a number: there a block is best compressed unsplit."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32, torch.int8):
        rows = (40 * torch.randn(1, 10)).repeat(20, 1).to(dtype)
        state = {"few": rows, "many": rows.repeat(2000, 1)}
        back = codec.decompress(codec.compress(state, lossless=["*"]))
        for name, tensor in state.items():
            assert torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8)), (name, dtype)


def test_a_long_vector_in_half_precision_opens():
    vector = torch.randn(1_200_000)
    assert torch.equal(codec.decompress(codec.compress({"v": vector}, vectors="float16"))["v"], vector.half().float())


def test_weights_of_a_pack_that_was_opened_before_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    blob = (ROOT / "artifacts" / "models" / "small.pack").read_bytes()
    first = codec.open(blob).weights
    with monkeypatch.context() as patched:
        patched.setattr(reader.Pack, "matrices", property(lambda self: pytest.fail("decoded again")))
        second = codec.open(blob).weights
    (found,) = (tmp_path / "weights").iterdir()
    found.write_bytes(b"damaged" + found.read_bytes()[7:])
    for again in (second, codec.open(blob).weights):
        assert list(again.matrices) == list(first.matrices)
        for name, matrix in first.matrices.items():
            other = again.matrices[name]
            for part in ("symbols", "rows", "columns"):
                assert np.array_equal(getattr(other, part), getattr(matrix, part)), name
                assert getattr(other, part).dtype == getattr(matrix, part).dtype


def test_threads_of_the_caller_stay_as_they_are():
    """Look in a new process, where no library has started its threads yet."""
    code = """
import codec, torch
torch.set_num_threads(1)
state = {f"w{i}": torch.randn(256, 256, generator=torch.Generator().manual_seed(i)) for i in range(3)}
blob = codec.compress(state)
weights = codec.open(blob)
weights.state_dict(), weights.tensor("w1")
pack = codec.open("artifacts/models/small.pack")
assert codec.decode(pack, codec.encode(pack, [b"a few words of a text"])) == [b"a few words of a text"]
pack.state_dict(), pack.exact()
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("name", ["plain", pytest.param("llama", marks=pytest.mark.long)])
def test_bits_of_a_models_matrices(name):
    """Wished rates are met, with and without a budget for the rest, and the model codes exactly."""
    config = PLAIN if name == "plain" else FAMILIES[name]
    state = random_weights(config) if name == "plain" else family_pack(config).state_dict()
    table = next(n for n, p in parameters(config).items() if p.role == "embedding")
    tokenizer = lossless_tokenizer() if name == "plain" else family_pack(config).tokenizer
    sizes = {}
    for wish in (3, 7):
        blob = codec.compress(state, config=config, tokenizer=tokenizer, bits={"*": 5, table: wish})
        entries = {entry["name"]: entry for entry in codec.open(blob).manifest["tensors"]}
        sizes[wish] = sum(entries[table]["parts"])
        assert 8 * sizes[wish] / state[table].numel() == pytest.approx(wish, abs=0.8)
        rest = [e for n, e in entries.items() if n != table]
        bits = sum(8 * sum(e["parts"]) for e in rest) / sum(state[e["name"]].numel() for e in rest)
        assert bits == pytest.approx(5, abs=1.2)
    pack = codec.open(blob)
    assert codec.decode(pack, codec.encode(pack, [b"some words of a text"])) == [b"some words of a text"]
    with pytest.raises(MismatchError, match="names vectors alone"):
        vector = next(n for n, p in parameters(config).items() if p.role == "vector")
        codec.compress(state, config=config, bits={vector: 4})
    with pytest.raises(FormatError, match="lossless, skip and vectors"):
        codec.compress(state, config=config, lossless=[table])
