"""codec.exact.recall and codec.backends.cpu.recall: what they add to levels is what their definition says, and both
agree.
"""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch

import codec
from codec.archive.writer import ArchiveWriter, Policy
from codec.backends.agree import TRIALS, agree
from codec.backends.cpu import recall as cpu_recall
from codec.backends.cpu.backend import CpuBackend
from codec.errors import FormatError, MismatchError
from codec.exact.chunks import prefill_chunks
from codec.exact.recall import SHAPES, UNIT, Recall, read_recall
from codec.exact.recall_memory import Memory
from codec.exact.reference import TorchBackend
from codec.numerics import tables
from codec.pack.change import with_recall
from codec.pack.container import read_container
from codec.pack.header import parse_header
from codec.text.open_coder import default_policy, make_coder
from codec.text.policy import Adaptation
from codec.zstd import unshrink
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_blob, tiny_pack
from trainer.data.sample import val_documents

GENERATOR = np.random.default_rng(0)
TABLES = Recall(**{name: GENERATOR.integers(-20, 60, shape).tolist() for name, shape in SHAPES.items()})
EXP2 = tables.exp2_table(24).astype(np.int32)


Cell = tuple[str, int, int]
"""An entry of the tables: its name, row and column."""


def textbook_keys(hidden: np.ndarray) -> np.ndarray:
    """Keys of a document's hidden states [T, dim]."""
    fixed = np.clip(np.rint(hidden * 512), -(2**14), 2**14)
    centred = [row - fixed[: t + 1].mean(0) for t, row in enumerate(fixed)]
    lengths = [np.sqrt((row**2).mean()) or 1.0 for row in centred]
    return np.array([np.clip(np.rint(c / n * 16), -127, 127) for c, n in zip(centred, lengths, strict=True)])


def textbook(tokens: np.ndarray, keys: np.ndarray, t: int, here: np.ndarray, history: int) -> dict[int, list[Cell]]:
    """The entries for each token that has followed, when token t is the last and levels are `here` [V]."""
    masks: dict[int, int] = {}
    cosines: dict[int, float] = {}
    for i in range(max(0, t - history), t):
        follower = int(tokens[i + 1])
        mask = sum(1 << (15 - j) for j in range(min(16, i + 1)) if tokens[i - j] == tokens[t - j])
        masks[follower] = max(masks.get(follower, 0), mask)
        cosine = float(keys[i] @ keys[t]) / (256 * keys.shape[1])
        cosines[follower] = max(cosines.get(follower, -9.0), cosine)
    surprisals = np.log2(np.exp2(here / 4096).sum()) - here / 4096
    cells: dict[int, list[Cell]] = {}
    for token, mask in masks.items():
        column = int(np.searchsorted([1, 2, 3, 4, 6, 8, 11], surprisals[token], side="right"))
        rows = mask >> 12, (mask % 4096).bit_count(), int(np.clip(np.floor(10 * cosines[token]) + 1, 0, 11))
        cells[token] = [(name, row, column) for name, row in zip(SHAPES, rows, strict=True)]
    return cells


def raised(tokens: np.ndarray, hidden: np.ndarray, levels: np.ndarray, history: int) -> np.ndarray:
    """Levels [T, V] with recall, of a document's tokens [T], hidden states [T, dim] and levels, place by place."""
    out, keys = levels.copy(), textbook_keys(hidden)
    for t, here in enumerate(levels):
        for token, cells in textbook(tokens, keys, t, here, history).items():
            out[t, token] += UNIT * sum(getattr(TABLES, name)[row][column] for name, row, column in cells)
    return out


@pytest.mark.parametrize("history", [8, 300])
def test_every_level_is_what_the_definition_says(history):
    generator, length, dim, vocabulary = np.random.default_rng(1), 200, 24, 40
    tokens = np.concatenate([generator.integers(0, vocabulary, 60), generator.integers(0, 4, 80), np.arange(60) % 7])
    hidden = generator.integers(-16384, 16385, (length, dim)) + 3000
    step = 1 / 2**14 * generator.integers(1, 4, length)
    levels = generator.integers(-40_000, 40_000, (length, vocabulary))
    expected = raised(tokens, hidden * step[:, None], levels, history)
    assert (expected != levels).mean() > 0.1
    fast = levels.astype(np.int32)
    memory = cpu_recall.new_memory(TABLES, 1, dim, history)
    slots, positions = np.zeros(length, np.int64), np.arange(length)
    cpu_recall.step(memory, slots, positions, tokens, hidden.astype(np.int32), step, fast, EXP2)
    assert np.array_equal(fast, expected)
    slow = Memory(TABLES, 3, dim, history=history)
    slot = torch.tensor([2])
    for t in range(length):
        here = torch.from_numpy(hidden[t : t + 1]).double(), torch.from_numpy(step[t : t + 1, None])
        found = slow.step(slot, slot * 0 + t, torch.tensor([tokens[t]]), here, torch.from_numpy(levels[t : t + 1]))
        assert np.array_equal(found[0], expected[t])


@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION], ids=["plain", "every option"])
def test_chunks_in_turn_on_either_backend(config):
    model = tiny_pack(config).exact()
    fast, slow, plain = CpuBackend(model.weights, TABLES), TorchBackend(model, TABLES), TorchBackend(model)
    assert agree(fast, slow, model.config, TRIALS["cpu"])
    generator = np.random.default_rng(2)
    documents = [generator.integers(0, 20, length) for length in (150, 97, 31, 5)]
    plans = [prefill_chunks(len(document) - 1, config.window) for document in documents]
    memories = fast.memory(4, 150), slow.memory(4, 200)
    pasts = [backend.past(4, config.window) for backend in (fast, slow, plain)]
    for turn in range(len(plans[0])):
        chunks = [(d, plan[turn]) for d, plan in zip(documents, plans, strict=True) if turn < len(plan)]
        inputs = [d[c.start : c.end] for d, c in chunks]
        targets = [d[c.start + 1 : c.end + 1] for d, c in chunks]
        found, expected, without = (
            fast.score(inputs, targets, memories[0], pasts[0]), slow.score(inputs, targets, memories[1], pasts[1]),
            plain.score(inputs, targets, past=pasts[2]),
        )  # fmt: skip
        assert np.array_equal(found[:2], expected[:2])
        assert np.abs(found[2] - without[2]).max() < 1e-12
        assert np.array_equal(expected[2], without[2])
        assert (found[1] != without[1]).mean() > 0.5


def test_tables_survive_json_and_nothing_else_is_taken():
    values = json.loads(json.dumps(TABLES.to_json()))
    assert np.array_equal(read_recall(values).tables, TABLES.tables)
    for name in SHAPES:
        for bad in (None, [], values[name][1:], [row[1:] for row in values[name]], [[1.0] * 8] * len(values[name])):
            with pytest.raises(FormatError, match="recall is no tables"):
                read_recall({**values, name: bad})
        with pytest.raises(FormatError, match="recall is no tables"):
            read_recall({key: value for key, value in values.items() if key != name})
    values["rest"][3][2] = 128
    with pytest.raises(FormatError, match="recall is no tables"):
        read_recall(values)


def recalling_pack(config=EVERY_OPTION, lossless=False) -> codec.Pack:
    return codec.open(with_recall(tiny_blob(config, lossless=lossless), TABLES))


WORDS = [b"one and two and one and three", b"", b"one", b"\xff\x00 one and two and", b"and one and two " * 12]


def test_archives_with_recall_come_back_whole_and_alone():
    pack = recalling_pack()
    packed = codec.encode(pack, WORDS, adaptation=Adaptation.RECALL)
    assert packed != codec.encode(pack, WORDS)
    assert codec.decode(pack, packed) == WORDS
    assert codec.decode(pack, packed, [4, 0]) == [WORDS[4], WORDS[0]]
    stream = BytesIO(packed)
    with ArchiveWriter(stream, pack, append=True) as writer:
        assert writer.coder.recall
        writer.append(WORDS[3:])
    assert codec.decode(pack, stream.getvalue()) == WORDS + WORDS[3:]


@pytest.mark.parametrize("window", [32, 20, 1])
def test_neither_company_nor_backend_nor_threads_matter(window):
    coder = make_coder(recalling_pack(lossless=True), Policy(window, Adaptation.RECALL))
    documents = [document[:size] for document, size in zip(val_documents(), (120, 70, 9), strict=False)]
    payloads = [record.payload for record in coder.encode(documents, model_only=True)]
    assert payloads == [coder.encode([document], model_only=True)[0].payload for document in documents]
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        assert [r.payload for r in coder.encode(documents, model_only=True)] == payloads
        assert dict(coder.decode(dict(enumerate(payloads)))) == dict(enumerate(documents))
    torch.set_num_threads(before)
    slow = replace(coder)
    slow.__dict__["backend"] = TorchBackend(coder.model, coder.recall)
    assert [r.payload for r in slow.encode(documents, model_only=True)] == payloads
    assert dict(slow.decode(dict(enumerate(payloads)))) == dict(enumerate(documents))


def test_repeated_text_gets_cheaper():
    rows = {name: [[0] * 8] * count for name, (count, _) in SHAPES.items()}
    rows["patterns"] = [[48 * (row == 15)] * 8 for row in range(16)]
    pack = codec.open(with_recall(tiny_blob(PLAIN), Recall(**rows)))
    document = [next(val_documents())[:100] * 4]
    plain, recalled = (
        sum(r.ideal_bits for r in make_coder(pack, default_policy(pack, a)).encode(document, model_only=True))
        for a in Adaptation
    )
    assert recalled < 0.9 * plain


def test_a_pack_without_tables_says_what_to_do():
    pack = tiny_pack(PLAIN)
    with pytest.raises(MismatchError, match="underpar recall"):
        codec.encode(pack, WORDS, adaptation=Adaptation.RECALL)
    header = json.loads(unshrink(read_container(with_recall(tiny_blob(PLAIN), TABLES))["header"], 1 << 20, ""))
    header["recall"]["rest"] = []
    with pytest.raises(FormatError, match="recall is no tables"):
        parse_header(json.dumps(header).encode())
