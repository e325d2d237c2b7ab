"""codec.recall and codec.cpu_recall: what they add to levels is what their definition says, and both agree."""

import json

import numpy as np
import pytest
import torch

from codec import cpu_recall, recall, tables
from codec.backend import TorchBackend, agree
from codec.errors import FormatError
from codec.exact_cpu import CpuModel
from codec.recall import SHAPES, UNIT, Memory, Recall
from codec.windows import document_windows
from tests.helpers import EVERY_OPTION, PLAIN, tiny_pack

GENERATOR = np.random.default_rng(0)
TABLES = Recall(**{name: GENERATOR.integers(-20, 60, shape).tolist() for name, shape in SHAPES.items()})
EXP2 = tables.exp2_table(24).astype(np.int32)


def textbook(tokens: np.ndarray, hidden: np.ndarray, levels: np.ndarray, history: int) -> np.ndarray:
    """Levels [T, V] with recall, of a document's tokens [T], hidden states [T, dim] and levels, place by place."""
    fixed = np.clip(np.rint(hidden * 512), -(2**14), 2**14)
    keys = []
    for t in range(len(tokens)):
        centred = fixed[t] - fixed[: t + 1].mean(0)
        length = np.sqrt((centred**2).mean())
        keys.append(np.clip(np.rint(centred / length * 16), -127, 127) if t else 0 * centred)
    out = levels.copy()
    for t, here in enumerate(levels):
        masks: dict[int, int] = {}
        cosines: dict[int, float] = {}
        for i in range(max(0, t - history), t):
            follower = int(tokens[i + 1])
            mask = sum(1 << (15 - j) for j in range(min(16, i + 1)) if tokens[i - j] == tokens[t - j])
            masks[follower] = max(masks.get(follower, 0), mask)
            cosine = float(keys[i] @ keys[t]) / (256 * hidden.shape[1])
            cosines[follower] = max(cosines.get(follower, -9.0), cosine)
        probabilities = np.exp2(here / 4096)
        surprisals = -np.log2(probabilities / probabilities.sum())
        for token, mask in masks.items():
            column = np.searchsorted([1, 2, 3, 4, 6, 8, 11], surprisals[token], side="right")
            pattern, rest = divmod(mask, 1 << 12)
            row = int(np.clip(np.floor(10 * cosines[token]) + 1, 0, 11))
            entries = TABLES.patterns[pattern], TABLES.rest[rest.bit_count()], TABLES.similarities[row]
            out[t, token] += UNIT * sum(entry[column] for entry in entries)
    return out


@pytest.mark.parametrize("history", [8, 300])
def test_every_level_is_what_the_definition_says(history):
    generator, length, dim, vocabulary = np.random.default_rng(1), 200, 24, 40
    tokens = np.concatenate([generator.integers(0, vocabulary, 60), generator.integers(0, 4, 80), np.arange(60) % 7])
    hidden = generator.integers(-16384, 16385, (length, dim)) + 3000
    step = 1 / 2**14 * generator.integers(1, 4, length)
    levels = generator.integers(-40_000, 40_000, (length, vocabulary))
    expected = textbook(tokens, hidden * step[:, None], levels, history)
    assert (expected != levels).mean() > 0.1
    fast = levels.astype(np.int32)
    memory = cpu_recall.new_memory(TABLES, 1, dim, history)
    lanes, positions = np.zeros(length, np.int64), np.arange(length)
    cpu_recall.step(memory, lanes, positions, tokens, hidden.astype(np.int32), step, fast, EXP2)
    assert np.array_equal(fast, expected)
    slow = Memory(TABLES, 3, dim, history=history)
    lane = torch.tensor([2])
    for t in range(length):
        here = torch.from_numpy(hidden[t : t + 1]).double(), torch.from_numpy(step[t : t + 1, None])
        found = slow.step(lane, lane * 0 + t, torch.tensor([tokens[t]]), here, torch.from_numpy(levels[t : t + 1]))
        assert np.array_equal(found[0], expected[t])


@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_windows_in_turn_on_either_backend(config):
    model = tiny_pack(config).exact()
    fast, slow, plain = CpuModel(model, TABLES), TorchBackend(model, TABLES), TorchBackend(model)
    assert agree(fast, slow, model)
    generator, stride = np.random.default_rng(2), 10
    documents = [generator.integers(0, 20, length) for length in (150, 97, 31, 5)]
    plans = [document_windows(len(document) - 1, config.window, stride) for document in documents]
    memories = fast.memory(4), slow.memory(4)
    for turn in range(len(plans[0])):
        windows = [(d, plan[turn]) for d, plan in zip(documents, plans, strict=True) if turn < len(plan)]
        inputs = [d[w.start : w.end] for d, w in windows]
        targets = [d[w.score_from + 1 : w.end + 1] for d, w in windows]
        found, expected, without = (
            fast.score(inputs, targets, memories[0]), slow.score(inputs, targets, memories[1]),
            plain.score(inputs, targets),
        )  # fmt: skip
        assert np.array_equal(found[:2], expected[:2])
        assert np.abs(found[2] - without[2]).max() < 1e-12
        assert np.array_equal(expected[2], without[2])
        assert (found[1] != without[1]).mean() > 0.5


def test_tables_survive_json_and_nothing_else_is_taken():
    values = json.loads(json.dumps(TABLES.to_json()))
    assert np.array_equal(recall.from_json(values).tables, TABLES.tables)
    for name in SHAPES:
        for bad in (None, [], values[name][1:], [row[1:] for row in values[name]], [[1.0] * 8] * len(values[name])):
            with pytest.raises(FormatError, match="recall is no tables"):
                recall.from_json({**values, name: bad})
        with pytest.raises(FormatError, match="recall is no tables"):
            recall.from_json({key: value for key, value in values.items() if key != name})
    values["rest"][3][2] = 128
    with pytest.raises(FormatError, match="recall is no tables"):
        recall.from_json(values)
