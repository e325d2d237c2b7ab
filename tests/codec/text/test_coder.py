"""codec.text.coder: the decoder finds what the encoder coded, in any company, however far beyond a window."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codec.archive.writer import Policy
from codec.backends.cpu import backend as backend_module
from codec.entropy import frequencies
from codec.errors import CodecError, FormatError
from codec.exact.model import ExactModel
from codec.text import coder as module
from codec.text.coder import Coder
from codec.text.documents import MODELLED, STORED, prepare
from codec.text.open_coder import make_coder
from codec.text.scheduler import Decoding
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_pack
from trainer.data.sample import val_documents

ODD_DOCUMENTS = [
    b"",
    b"\0",
    b"\xff\xfe\x80",
    "▁a▁▁ ▁".encode(),
    "�x�".encode(),
    b"<s></s><unk><pad><0x41>",
    b" ",
    b"\n\n\n a  b \t\r\n",
    "é e\u0301 ﬁ ½ 日本 🏳️‍🌈".encode(),
    b"a",
]


def round_trip(coder: Coder, documents: list[bytes]) -> int:
    """Bytes of payload; every document through the model."""
    records = coder.encode(documents, model_only=True)
    assert [record.mode for record in records] == [MODELLED] * len(documents)
    found = dict(coder.decode({n: record.payload for n, record in enumerate(records)}))
    assert [found[n] for n in range(len(documents))] == documents
    return sum(len(record.payload) for record in records)


@pytest.fixture(scope="module", params=["challenge's tokenizer", "lossless tokenizer"])
def coder(request) -> Coder:
    return make_coder(tiny_pack(EVERY_OPTION, lossless=request.param.startswith("lossless")))


def test_odd_documents(coder):
    round_trip(coder, ODD_DOCUMENTS)
    for document in ODD_DOCUMENTS:
        round_trip(coder, [document])


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), min_size=1, max_size=5))
@example([b"\0" * 300, b""])
def test_any_documents(documents):
    round_trip(make_coder(tiny_pack(PLAIN)), documents)
    round_trip(make_coder(tiny_pack(PLAIN, lossless=True)), documents)


def test_one_byte_64_ki_times():
    config = replace(PLAIN, num_layers=1)
    assert round_trip(make_coder(tiny_pack(config, lossless=True)), [b"a" * 65_536]) < 65_536
    assert round_trip(make_coder(tiny_pack(config)), [b"\xff" * 65_536]) < 100  # all of it edits


@pytest.mark.long
@pytest.mark.parametrize("byte", [0, 10, 97])
def test_one_byte_64_ki_times_as_single_tokens(byte):
    round_trip(make_coder(tiny_pack(replace(PLAIN, num_layers=1))), [bytes([byte]) * 65_536])


@pytest.mark.parametrize("window", [32, 7, 2, 1])
def test_documents_longer_than_a_window(window):
    text = next(val_documents())
    coder = make_coder(tiny_pack(EVERY_OPTION), Policy(window))
    round_trip(coder, [text[:260], text[300:420], text[:40], b""])


def test_a_document_that_ends_where_a_window_does(coder):
    """Tokens with the end: 31, 32, 33, 47, 48, 49 of windows of 32, and 16 more each."""
    text = next(val_documents())
    for total in (31, 32, 33, 47, 48, 49):
        size = next(n for n in range(1, 999) if len(coder.tokenizer.encode(text[:n])) + 1 == total)
        records = coder.encode([text[:size]], model_only=True)
        assert records[0].tokens == total
        round_trip(coder, [text[:size]])


def test_the_code_is_that_of_the_levels(coder):
    """Against the levels of a document that fits the window, with the frequencies of each target."""
    document = next(val_documents())[:40]
    (record,) = coder.encode([document], model_only=True)
    stream = np.concatenate(([1], coder.tokenizer.encode(document).astype(np.int64), [1]))
    assert len(stream) - 1 <= coder.window
    model = ExactModel(coder.weights)
    levels = model.levels(*model.forward(torch.from_numpy(stream[None, :-1])))[0]
    _, sizes, _ = frequencies.intervals(levels, torch.from_numpy(stream[1:]))
    bits = float((24 - np.log2(sizes.numpy())).sum())
    assert record.ideal_bits == pytest.approx(bits, rel=1e-9)
    assert abs(record.exact_bits - bits) < 0.02 * bits  # random weights make symbols rarer than 2^-24
    assert 8 * len(record.payload) <= bits + 8 + 0.01


def test_payloads_do_not_depend_on_company(coder, monkeypatch):
    documents = [d[:n] for d, n in zip(val_documents(), (5, 300, 60, 61, 0, 140, 30, 220), strict=False)]
    together = [record.payload for record in coder.encode(documents, model_only=True)]
    assert [coder.encode([document], model_only=True)[0].payload for document in documents] == together
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 40})
    monkeypatch.setattr("codec.exact.reference._HEAD_ROWS", {"cpu": 7})
    assert [record.payload for record in coder.encode(documents, model_only=True)] == together


@pytest.mark.parametrize("size", [1, 100, 400])
def test_records_do_not_depend_on_parts(coder, monkeypatch, size):
    """Some documents are hopeless, so that there are parts of nothing else."""
    documents = [b"a" * 900, *(d[:n] for d, n in zip(val_documents(), (5, 300, 0, 140), strict=False)), b"\xff" * 99]
    one_part, told = coder.encode(documents), []
    monkeypatch.setattr(module, "_PART_BYTES", {"cpu": size})
    monkeypatch.setattr(module, "_LEAST_BYTES", {"cpu": size // 4})
    assert coder.encode(documents, advance=told.append) == one_part
    assert sum(told) == pytest.approx(sum(map(len, documents)))
    assert coder.encode([]) == []


def test_all_threads_have_equally_many_documents(coder, monkeypatch):
    """Unless caches of so many documents take too much memory; a batch of few tokens is never cut for that."""
    prepared = [prepare(d[:100], coder.tokenizer, True) for d in islice(val_documents(), 7)]
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 40})
    assert list(map(len, replace(coder, threads=3)._batches(prepared))) == [3, 3, 1]
    monkeypatch.setattr(module, "_CACHE_BYTES", 2 * coder.backend.slot_bytes(0))
    assert list(map(len, replace(coder, threads=3)._batches(prepared))) == [2, 2, 2, 1]
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 1000})
    assert list(map(len, replace(coder, threads=3)._batches(prepared))) == [7]


def test_documents_behind_each_other_fill_batches(coder, monkeypatch):
    """Documents within a window take blocks of 64 tokens each; a longer one runs alone or beside others."""
    prepared = [SimpleNamespace(stream=np.zeros(n + 1), hopeless=False) for n in (300, 100, 60, 200, 70)]
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 320})
    packing = replace(coder, threads=1, window=256)
    monkeypatch.setattr(packing.backend, "packs", True, raising=False)
    assert list(packing._batches(prepared)) == [[0], [3], [1, 4, 2]]


def test_a_batch_is_given_before_the_one_before_is_waited_for(coder, monkeypatch):
    """And no more than that; all are waited for in their order, and an interrupt in the middle ends it all."""
    coder = replace(coder, threads=1)  # a batch has no document beyond its tokens
    documents = [d[:n] for d, n in zip(val_documents(), (5, 300, 60, 0, 140), strict=False)]
    together, launch, events = coder.encode(documents, model_only=True), coder.backend.launch, []

    def spy(*arguments):
        scores, n = launch(*arguments), sum(kind == "given" for kind, _ in events)
        events.append(("given", n))
        return lambda: events.append(("awaited", n)) or scores()

    monkeypatch.setattr(coder.backend, "launch", spy)
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 40})
    monkeypatch.setattr(module, "_PART_BYTES", {"cpu": 200})
    assert coder.encode(documents, model_only=True) == together
    count = len(events) // 2
    assert count > 5
    pairs = [(("given", n), ("awaited", n - 1)) for n in range(1, count)]
    assert events == [("given", 0), *(event for pair in pairs for event in pair), ("awaited", count - 1)]

    def interrupt(amount):
        if len(events) > 6:
            raise KeyboardInterrupt

    events.clear()
    with pytest.raises(KeyboardInterrupt):
        coder.encode(documents, model_only=True, advance=interrupt)
    assert len(events) == 7


@pytest.mark.parametrize("slots", [1, 2, 5, 64])
def test_fewer_slots_than_documents(coder, slots, monkeypatch):
    """Slots take the next document when one ends, and are dropped once half of them idle."""
    documents = [d[: 11 * n] for n, d in zip(range(12), val_documents(), strict=False)]
    payloads = {100 - n: r.payload for n, r in enumerate(coder.encode(documents, model_only=True))}
    monkeypatch.setattr(module, "MOST_SLOTS", {"cpu": slots})
    found = dict(coder.decode(payloads))
    assert found == {100 - n: document for n, document in enumerate(documents)}
    few = {number: payloads[number] for number in (100, 91, 95)}
    assert dict(coder.decode(few)) == {number: documents[100 - number] for number in few}


class Late:
    """A decoder of the host that decodes three tokens a launch, and has one under way while the host looks."""

    ahead = 1

    def __init__(self, decoder):
        self.load, self._decoder, self._flying = decoder.load, decoder, 0
        self.launched_in_flight = 0

    def launch(self):
        self._flying += 1
        self.launched_in_flight += self._flying == 2
        symbols, states = zip(*(self._decoder.launch()() for _ in range(3)), strict=True)

        def wait():
            self._flying -= 1
            return np.concatenate(symbols), states[-1]

        return wait

    def keep(self, slots):
        assert not self._flying
        self._decoder.keep(slots)


def test_slots_that_run_ahead_of_the_host(monkeypatch):
    """Slots end, are loaded and dropped while steps that were launched before run."""
    monkeypatch.setattr(backend_module, "_STEPS", 1)
    coder = make_coder(tiny_pack(replace(PLAIN, num_layers=1)), Policy(4))
    documents = [d[:n] for n, d in zip((1, 120, 0, 9, 60, 33, 7), val_documents(), strict=False)]
    payloads = dict(enumerate(r.payload for r in coder.encode(documents, model_only=True)))
    made = []

    def decoder(*arguments, **settings):
        made.append(Late(coder.backend.decoder(*arguments, **settings)))
        return made[0]

    backend = SimpleNamespace(decoder=decoder)
    decoding = Decoding(backend, coder.tokenizer, payloads, 4, slots=3, room=0, threads=2)
    assert dict(decoding.documents(lambda _: None)) == dict(enumerate(documents))
    assert made[0].launched_in_flight > 10


def test_little_memory_means_fewer_slots(coder, monkeypatch):
    documents = [d[:50] for d in val_documents()][:6]
    payloads = dict(enumerate(r.payload for r in coder.encode(documents, model_only=True)))
    monkeypatch.setattr(module, "_CACHE_BYTES", 1)
    assert dict(coder.decode(payloads)) == dict(enumerate(documents))


def test_close_to_the_ideal_code_length(coder):
    documents = [document[:400].rsplit(b" ", 1)[0] for document in val_documents()][:60]
    records = coder.encode(documents, model_only=True)
    ideal = sum(record.ideal_bits for record in records)
    assert 8 * sum(len(record.payload) for record in records) <= 1.0005 * ideal + 8 * len(records)
    assert all(8 * len(record.payload) <= 1.0005 * record.ideal_bits + 8.01 for record in records)


def test_progress_adds_up(coder):
    documents = [b"", *(d[:100] for d in list(val_documents())[:5]), b"ab" * 5000]
    encoded: list[float] = []
    records = coder.encode(documents, advance=encoded.append)
    assert sum(encoded) == pytest.approx(sum(map(len, documents)))
    decoded: list[float] = []
    payloads = {n: r.payload for n, r in enumerate(records) if r.mode == MODELLED}
    assert dict(coder.decode(payloads, decoded.append)) == {n: documents[n] for n in payloads}
    assert sum(decoded) == sum(map(len, payloads.values()))


def test_nothing_to_do(coder):
    assert coder.encode([]) == []
    assert list(coder.decode({})) == []


@settings(max_examples=25)
@given(st.binary(max_size=60), st.booleans())
@example(b"", False)
@example(b"", True)
@example(b"\xff" * 20, True)
def test_garbage_is_an_error_or_a_document(data, lossless):
    """The lossless tokenizer has half as many tokens as its model, so a decoder can come upon one it does not know."""
    coder = make_coder(tiny_pack(PLAIN, lossless=lossless))
    try:
        ((number, found),) = coder.decode({7: data})
    except CodecError as error:
        assert any(words in str(error) for words in ("document 7: its record", "record of", "token ids"))
    else:
        assert number == 7
        assert isinstance(found, bytes)


def test_truncated_records_are_told_or_other_text(coder):
    document = next(val_documents())[:120]
    (record,) = coder.encode([document], model_only=True)
    for size in range(0, len(record.payload), 9):
        try:
            found = dict(coder.decode({0: record.payload[:size]}))[0]
        except CodecError:
            continue
        assert found != document


@pytest.mark.parametrize("threads", [1, 3])
def test_groups_are_coded_as_each_alone(coder, threads):
    """In their order, with empty and hopeless documents; only a few are read before the first of them is done."""
    several = replace(coder, threads=threads)
    documents, read = [b"", *(d[:60] for d in list(val_documents())[:13]), b"\0" * 500, b"", b"end"], []

    def reading() -> Iterator[bytes]:
        for document in documents:
            read.append(document)
            yield document

    done: list[bytes] = []
    for group, records in several.encode_groups(reading(), 100):
        assert group == documents[len(done) :][: len(group)]
        assert sum(map(len, group)) >= 100 or documents[-1] == group[-1]
        assert len(read) <= len(done) + 12
        assert records == coder.encode(group)
        done += group
    assert done == documents


def test_groups_before_one_that_cannot_be_read_are_coded(coder):
    def reading() -> Iterator[bytes]:
        yield from (b"one", b"two", b"three")
        raise FormatError("line 4")

    coding = coder.encode_groups(reading(), 6)
    assert [group for group, _ in islice(coding, 1)] == [[b"one", b"two"]]
    with pytest.raises(FormatError, match="line 4"):
        next(coding)


def test_groups_for_which_nothing_is_launched_are_not_kept(coder):
    """Zeros that follow a text need no model, and so no batch that would be waited for."""
    read = []

    def reading() -> Iterator[bytes]:
        for n in range(40):
            read.append(n)
            yield b"\0" * 500 if n else b"Some text before all that."

    for n, (_, records) in enumerate(coder.encode_groups(reading(), 10)):
        assert len(read) <= n + 6
        assert n == 0 or [record.mode for record in records] == [STORED]


def test_what_is_no_document_is_not_the_end(coder):
    with pytest.raises(TypeError):
        coder.encode([b"one", None, b"two"])
    assert list(coder.encode_groups(iter([]), 10)) == []
