"""codec.backends.cpu.backend: the reference's integers, bit for bit, in any company and on any number of threads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import codec
from codec.archive.writer import Policy
from codec.backends.agree import TRIALS, agree
from codec.backends.cpu import backend as exact_cpu
from codec.backends.cpu import constants as cpu_network
from codec.backends.cpu import head as cpu_head
from codec.backends.cpu.attention import softmax
from codec.backends.cpu.backend import CpuBackend, CpuSlots
from codec.backends.cpu.matmul import (
    COLUMNS,
    ROWS,
    WIDE,
    block_shape,
    fill_blocks,
    heads_at_once,
    multiply_add,
    multiply_wide,
    project,
    split_digits,
)
from codec.backends.select import make_backend
from codec.entropy import frequencies
from codec.exact.model import ExactModel
from codec.exact.reference import TorchBackend, TorchSlots
from codec.exact.weights import Weights
from codec.model.config import ModelConfig
from codec.numerics import tables
from codec.numerics.widths import FEW_BITS, SOFTMAX_BITS
from codec.pack.reader import Pack
from codec.quantization.quantized import Quantized
from codec.text.open_coder import make_coder
from tests.codec.exact.test_model import CONFIGS, LONG, some_tokens, threads
from tests.support.helpers import EVERY_OPTION, PLAIN, random_weights, tiny_pack
from trainer.data.sample import val_documents

LEFT_TO_THE_REFERENCE = {
    "rare options": "no factorised embedding and no random maps and no value embeddings and no SwiGLU",
    "values": "no random maps and no value embeddings",
    "swiglu": "no factorised embedding and no SwiGLU",
}
"""Of CONFIGS, and what the reason says."""

ODD = replace(EVERY_OPTION, vocab_size=1030, bigram_dim=15, model_dim=44, num_heads=2, num_kv_heads=1, rope_dims=2)
"""Nothing is a multiple of the sizes that the kernels work in, and heads take more than one block of columns."""

MORE_CONFIGS = {
    **{name: config for name, config in CONFIGS.items() if name not in LEFT_TO_THE_REFERENCE},
    "sizes beside the tiles": ODD,
    "three heads a key": replace(PLAIN, model_dim=36, num_heads=6, num_kv_heads=2),
    "five heads a key": replace(PLAIN, model_dim=30, num_heads=5, num_kv_heads=1),
    "window of many blocks": replace(EVERY_OPTION, window=150),
}


def model_of(config: ModelConfig, **factors: float) -> ExactModel:
    """Random weights; those whose name ends with a key are multiplied by its factor."""
    weights = random_weights(config)
    for name, tensor in weights.items():
        for ending, factor in factors.items():
            if name.endswith(ending):
                weights[name] = tensor * factor
    pack = codec.open(codec.compress(weights, config))
    return ExactModel(Weights(config, pack.matrices, pack.vectors))


def rows_of(tokens: torch.Tensor) -> np.ndarray:
    return exact_cpu._rows(list(tokens.numpy()), range(len(tokens)))


def assert_same(model: ExactModel, tokens: torch.Tensor) -> None:
    """The last hidden state and all that the head makes of it."""
    fast, (batch, length) = CpuBackend(model.weights), tokens.shape
    hidden, steps = model.forward(tokens)
    found, found_steps = fast.run(rows_of(tokens), exact_cpu._cache(model.config, batch, length))
    assert np.array_equal(found, hidden.flatten(0, 1).numpy())
    assert np.array_equal(found_steps, steps.flatten().numpy())
    levels = model.levels(hidden, step=steps).flatten(0, 1)
    assert len(levels.unique()) > 100  # not a degenerate model
    found_levels = fast.levels(found, found_steps)
    assert np.array_equal(found_levels, levels.numpy())
    targets = tokens.flatten().roll(3)
    expected = torch.stack([part.double() for part in frequencies.intervals(levels, targets)]).numpy()
    intervals = cpu_head.intervals(found_levels, targets.numpy(), fast.octave)
    assert np.array_equal(intervals[:2], expected[:2])
    assert np.abs(intervals[2] - expected[2]).max() < 1e-12
    wanted = torch.arange(len(levels)) * 1_234_577 % (1 << FEW_BITS)
    symbols = torch.stack(frequencies.find(levels, wanted)).numpy()
    assert np.array_equal(cpu_head.find(found_levels, wanted.numpy(), fast.octave), symbols)


@pytest.mark.parametrize("config", MORE_CONFIGS.values(), ids=MORE_CONFIGS)
def test_every_option(config):
    model = model_of(config)
    assert_same(model, some_tokens(5, config.window, config.vocab_size))
    assert_same(model, some_tokens(3, 1, config.vocab_size))


def test_a_window_of_4096():
    assert_same(model_of(LONG), some_tokens(1, 4096))


@pytest.mark.parametrize(
    "factors",
    [
        {"tok_emb.weight": 30.0},
        {"q_gain": 50.0},
        {"q_gain": -3.0},
        {"q_gain": 3e37},
        {"mlp.fc.weight": 1e12},
        {"c_v.weight": 1e-9},
        {"gate": 300.0},
        {"resid_mix": 900.0},
        {"resid_mix": 0.0},
        {"tok_emb.weight": 1e-30},
    ],
    ids=str,
)
def test_large_and_small_numbers(factors):
    model = model_of(EVERY_OPTION, **factors)
    tokens = some_tokens(3, 32)
    if factors == {"resid_mix": 0.0} or factors.get("tok_emb.weight", 1) < 1:
        found, _ = CpuBackend(model.weights).run(rows_of(tokens), exact_cpu._cache(model.config, 3, 32))
        assert np.array_equal(found, model.forward(tokens)[0].flatten(0, 1).numpy())
    else:
        assert_same(model, tokens)


def changed(pack: Pack, **changes: Quantized) -> ExactModel:
    assert pack.config is not None
    return ExactModel(Weights(pack.config, {**pack.matrices, **changes}, pack.vectors))


def test_column_steps():
    pack = tiny_pack(ODD)
    generator = np.random.default_rng(0)
    names = [name for name in pack.matrices if not name.startswith("blocks.1")]  # layers with and without
    model = changed(
        pack,
        **{
            name: replace(
                pack.matrices[name],
                columns=generator.uniform(0.5, 2, pack.matrices[name].symbols.shape[1]).astype("f4"),
            )
            for name in names
        },
    )
    assert_same(model, some_tokens(4, 32, ODD.vocab_size))


@pytest.mark.parametrize("shift, digits", [(3, 1), (8, 3), (8, 3)])
def test_weights_whose_sums_outgrow_32_bits_take_more_digits(shift, digits):
    pack = tiny_pack(EVERY_OPTION)
    wide = {
        name: replace(m, symbols=m.symbols << shift, rows=m.rows / (1 << shift)) for name, m in pack.matrices.items()
    }
    model = changed(pack, **wide)
    network = CpuBackend(model.weights).network
    assert network.up.digit_count.max() == max(1, digits - 1)
    assert network.down.digit_count.max() >= max(2, digits)
    assert_same(model, some_tokens(3, 32))


@settings(max_examples=60)
@given(st.integers(2, 15), st.lists(st.integers(-(1 << 28), 1 << 28), min_size=1, max_size=9))
def test_digits_add_up(bits, values):
    operand = max(map(abs, values))
    count = 1
    while operand > 1 << (bits - 1):
        operand, count = (operand + (1 << (bits - 1))) >> bits, count + 1
    digits = split_digits(np.array([values], np.int32), bits, count)
    assert digits.shape == (count, ROWS, len(values) + len(values) % 2)
    assert np.abs(digits.astype(int)).max() <= 1 << (bits - 1)
    total = sum(digits[k, 0].astype(np.int64) << (bits * (count - 1 - k)) for k in range(count))
    assert total[: len(values)].tolist() == values
    assert not digits[:, 1:].any()


@pytest.mark.parametrize("weight", [1, 4676, (1 << 17) - 1, 1 << 17, 1 << 20, (1 << 24) - 1])
@pytest.mark.parametrize("operand", [1 << 14, 1 << 28])
def test_digits_are_as_few_as_32_bits_allow(weight, operand):
    bits, count = cpu_network._digits(float(weight), operand)
    assert weight << (bits - 1) < 1 << 31
    assert bits == 15 or weight << bits >= 1 << 31
    top = operand
    for _ in range(count - 1):
        assert top > 1 << (bits - 1)
        top = (top + (1 << (bits - 1))) >> bits
    assert top <= 1 << (bits - 1)


def test_products_against_int64():
    generator = np.random.default_rng(1)
    for n, width, size in [(1, 1, 1), (4, 16, 16), (5, 33, 17), (9, 6, 47)]:
        weights = generator.integers(-127, 128, (2, size, width))
        x = generator.integers(-(1 << 28), 1 << 28, (n, width)).astype(np.int32)
        bits, count = cpu_network._digits(np.abs(weights).sum(2).max(), 1 << 28)
        integers = np.zeros((2, *block_shape(size, width)), np.int16)
        for matrix, out in zip(weights, integers, strict=True):
            fill_blocks(matrix.astype(np.int32), out)
        linear = cpu_network.Linear(
            integers,
            np.full((2, size), 0.5),
            np.ones((2, width)),
            np.zeros(2, bool),
            np.full(2, bits),
            np.full(2, count),
        )
        assert linear.integers.shape == (2, -(-size // COLUMNS), (width + 1) // 2, COLUMNS, 2)
        found = project(linear, 1, x, np.full(n, 2.0))
        assert np.array_equal(found, (x.astype(np.int64) @ weights[1].T).astype(np.float64))


@settings(max_examples=60)
@given(st.lists(st.floats(-500, 500) | st.sampled_from([0.0, -0.0, 1e9, -1e300]), min_size=4, max_size=60), st.data())
def test_the_head_on_any_logits(values, data):
    logits = np.array([values])
    softcap = tables.softcap_table(30.0)
    index = np.minimum(np.rint(np.abs(logits) * 1024), len(softcap) - 1).astype(np.int64)
    levels = torch.from_numpy(np.where(logits < 0, -softcap[index], softcap[index]))
    symbol = data.draw(st.integers(0, len(values) - 1))
    expected = torch.stack([p.double() for p in frequencies.intervals(levels, torch.tensor([symbol]))]).numpy()
    octave, found_levels = cpu_head.octave(), cpu_head.levels(logits, softcap.astype(np.int32))
    assert np.array_equal(found_levels, levels.numpy())
    found = cpu_head.intervals(found_levels, np.array([symbol]), octave)
    assert np.array_equal(found[:2], expected[:2])
    target = data.draw(st.sampled_from([0, (1 << FEW_BITS) - 1]) | st.integers(0, (1 << FEW_BITS) - 1))
    for wanted in (target, int(found[0, 0]), int(found[0, 0] + found[1, 0]) - 1):
        expected = torch.stack(frequencies.find(levels, torch.tensor([wanted]))).numpy()
        assert np.array_equal(cpu_head.find(found_levels, np.array([wanted]), octave), expected)


def ragged(lengths: Sequence[int], vocabulary: int = 1024) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Windows and the targets of the last part of each."""
    generator = np.random.default_rng(len(lengths))
    inputs = [generator.integers(0, vocabulary, length) for length in lengths]
    return inputs, [generator.integers(0, vocabulary, 1 + length // 2) for length in lengths]


@pytest.mark.parametrize("count", [1, 2])
def test_scores_of_windows_of_any_length(count):
    model = model_of(MORE_CONFIGS["window of many blocks"])
    fast, reference = CpuBackend(model.weights), TorchBackend(model)
    with threads(count):
        for lengths in ([1], [150], [2, 1, 3], [1, 150, 7, 64, 65, 63, 128, 33, 2, 90, 149, 150, 150]):
            inputs, targets = ragged(lengths)
            found, expected = fast.score(inputs, targets), reference.score(inputs, targets)
            assert found.shape == expected.shape == (3, sum(map(len, targets)))
            assert np.array_equal(found[:2], expected[:2])
            assert np.abs(found[2] - expected[2]).max() < 1e-12


@pytest.mark.parametrize("count", [1, 2])
def test_slots_step_as_the_reference_does(count):
    """Slots that stop and begin again, go beyond a window, are dropped and renumbered."""
    model, generator = model_of(MORE_CONFIGS["window of many blocks"]), np.random.default_rng(0)
    both = [CpuSlots(CpuBackend(model.weights), 7, 33), TorchSlots(model, 7, 33, None)]
    running = {slot: [1] for slot in range(7)}
    with threads(count):
        for turn in range(45):
            if turn == 20:
                for slots in both:
                    slots.keep([3, 0, 1, 6])
                running = {slot: running[old] for slot, old in enumerate([3, 0, 1, 6]) if old in running}
            if turn % 5 == 4:
                running.pop(turn % 3, None)
            if turn % 7 == 6:
                running[turn % 4] = [1]
            rows = [(slot, t[-1], t[-2:][0], len(t) - 1) for slot, t in running.items()]
            targets = generator.integers(0, (1 << FEW_BITS), len(rows))
            found, expected = (slots.step(*np.array(rows).T.copy(), targets) for slots in both)
            assert np.array_equal(found, expected)
            for slot, symbol in zip(running, found[0].tolist(), strict=True):
                running[slot].append(symbol)


@pytest.mark.parametrize("config", [EVERY_OPTION, PLAIN], ids=["every option", "plain"])
def test_what_one_codes_the_other_decodes(config):
    pack = tiny_pack(config)
    documents = [document[:n] for document, n in zip(val_documents(), (400, 0, 37, 150, 260), strict=False)]
    fast, slow = (make_coder(pack, Policy(20)) for _ in range(2))
    slow.__dict__["backend"] = TorchBackend(slow.model)
    assert isinstance(fast.backend, CpuBackend)
    payloads = [[r.payload for r in coder.encode(documents, model_only=True)] for coder in (fast, slow)]
    assert payloads[0] == payloads[1]
    for coder in (fast, slow):
        assert dict(coder.decode(dict(enumerate(payloads[0])))) == dict(enumerate(documents))


def test_integers_of_more_than_16_bits_are_left_to_the_reference(capsys):
    pack = tiny_pack(PLAIN)
    name = "blocks.1.attn.c_q.weight"
    wide = replace(pack.matrices[name], symbols=pack.matrices[name].symbols << 12)
    assert isinstance(make_backend(changed(pack, **{name: wide}).weights), TorchBackend)
    assert "slowly: integers of more than 16 bits" in capsys.readouterr().err


@pytest.mark.parametrize("name, reason", LEFT_TO_THE_REFERENCE.items())
def test_options_that_are_left_to_the_reference(name, reason, capsys):
    pack = tiny_pack(CONFIGS[name])
    coder = make_coder(pack, Policy(20))
    assert isinstance(coder.backend, TorchBackend)
    assert reason in " ".join(capsys.readouterr().err.split())
    documents = [document[:100] for document, _ in zip(val_documents(), range(2), strict=False)]
    payloads = [r.payload for r in coder.encode(documents, model_only=True)]
    assert dict(coder.decode(dict(enumerate(payloads)))) == dict(enumerate(documents))


@pytest.mark.parametrize("kernel", ["intervals", "find"])
def test_a_machine_that_computes_otherwise_is_noticed(kernel, monkeypatch, capsys):
    model = tiny_pack(PLAIN).exact()
    assert isinstance(make_backend(model.weights), CpuBackend)
    assert not capsys.readouterr().err
    right = getattr(cpu_head, kernel)
    monkeypatch.setattr(cpu_head, kernel, lambda *arguments: right(*arguments) + 1)
    assert not agree(CpuBackend(model.weights), TorchBackend(model), model.config, TRIALS["cpu"])
    unknown = replace(model.weights, sha256=kernel)  # no verdict is kept of a pack of this name
    assert isinstance(make_backend(unknown), TorchBackend)
    assert "does not compute it as torch does" in " ".join(capsys.readouterr().err.split())


def test_attention_weights_are_those_of_the_table():
    """At every distance from the largest score, beyond the table's end too."""
    table, last = tables.exp2_table(SOFTMAX_BITS), tables.EXP2_LENGTH - 1
    scores = -np.arange(0, last + 5000, dtype=np.int32)
    low, high = (np.empty(len(scores), np.int16) for _ in range(2))
    total = softmax(scores, 1.0, np.inf, low, high)
    expected = table[np.minimum(-scores, last)]
    assert np.array_equal(low + 2048 * high.astype(np.int64), expected)
    assert np.abs(low).max() <= 1024
    assert total == expected.sum()


def test_the_coders_weights_are_those_of_the_table():
    powers = cpu_head.octave()
    found = [cpu_head.weight(powers, below, FEW_BITS) for below in range(tables.EXP2_LENGTH)]
    assert np.array_equal(found, tables.exp2_table(FEW_BITS))


@pytest.mark.parametrize("heads", [2, 3])
def test_tiles_are_parts_of_longer_rows(heads):
    """The shapes that attention takes, beside numpy's products."""
    generator = np.random.default_rng(0)
    x = generator.integers(-1000, 1000, (2 * heads, 10), dtype=np.int16)
    wide = generator.integers(-1000, 1000, (3, WIDE, 2), dtype=np.int16)
    narrow = generator.integers(-1000, 1000, (3, COLUMNS, 2), dtype=np.int16)
    products, sums = np.zeros((heads, WIDE + 2), np.int32), np.ones((2 * heads, COLUMNS + 2), np.int64)

    @njit
    def multiply(x, wide, narrow, products, sums):
        multiply_wide(x[: len(products), 2:], wide, products[:, 1:])
        multiply_add(x[:, 2:], narrow, sums[:, 1:])

    multiply(x, wide, narrow, products, sums)
    operand = x[:, 2:8].astype(np.int64)
    expected = np.zeros_like(products)
    expected[:, 1:-1] = operand[:heads] @ wide.swapaxes(1, 2).reshape(6, WIDE)
    assert np.array_equal(products, expected)
    expected = np.ones_like(sums)
    expected[:, 1:-1] += operand @ narrow.swapaxes(1, 2).reshape(6, COLUMNS)
    assert np.array_equal(sums, expected)


def test_heads_at_once_take_the_fewest_turns():
    assert [heads_at_once(group) for group in range(1, 9)] == [2, 2, 3, 2, 3, 3, 3, 3]
