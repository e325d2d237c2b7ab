"""Solid blocks: any bytes come back, whatever the tokenizer and the segments; damage is noticed and bounded."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codec.errors import CodecError, FormatError, MismatchError
from codec.numerics.widths import FEW
from codec.text.open_coder import make_coder
from codec.text.solid import coder as solid
from codec.text.solid import mixed, mixed_decoder
from codec.text.solid.coder import BYTES, MIXED, SolidCoder
from codec.text.solid.mixed import Mixing, read_header
from tests.support.families import LLAMA, family_pack
from tests.support.helpers import EVERY_OPTION, PLAIN, folding_pack, tiny_pack, whole_sums
from trainer.data.sample import val_documents

TEXT = next(val_documents())

ODD = [
    b"\0",
    b"a",
    b"\xff\xfe\x80",
    b"\n",
    b"\r",
    b"\r\n",
    b"a\rb\r\nc\nd\r\n\r\n",
    "▁a▁▁ ▁ é e\u0301 ﬁ ½ 日本 🏳️‍🌈".encode(),
    "Grüße aus Köln".encode("latin-1"),
    "Ünïted NATIONS Of the wORLD".encode(),
    "日本".encode()[1:-1],
    b"<s></s><unk><pad><0x41>",
    b"\0" * 700,
    b"ab" * 400,
]


MANY = replace(LLAMA, vocab_size=FEW + 60)
"""Of a family whose documents begin anew behind each window, with symbols that no token has."""


def packs() -> dict:
    return {
        "lossless": tiny_pack(EVERY_OPTION, lossless=True),
        "lossy": tiny_pack(PLAIN),
        "folding": folding_pack(),
        "many symbols": family_pack(MANY),
    }


@pytest.fixture(scope="module", params=["lossless", "lossy", "folding", "many symbols"])
def coder(request) -> SolidCoder:
    return SolidCoder(make_coder(packs()[request.param]))


@pytest.fixture(scope="module")
def lossless() -> SolidCoder:
    return SolidCoder(make_coder(packs()["lossless"]))


@pytest.fixture
def short_segments(monkeypatch) -> None:
    """Segments of 64 bytes, so that short texts have several."""
    monkeypatch.setattr(mixed, "SEGMENT_BYTES", 64)


def mixing_of(coder: SolidCoder) -> Mixing:
    assert coder._mixing is not None
    return coder._mixing


def data_of(mixing: Mixing, blocks: list[bytes]) -> list[bytes | None]:
    """Payloads of blocks through the model."""
    return [found.data if found else None for found in mixing.encode(blocks)]


def mixed_round_trip(coder: SolidCoder, blocks: list[bytes]) -> list[bytes | None]:
    """Payloads of blocks through the model, where they are for that; all come back."""
    payloads = data_of(mixing_of(coder), blocks)
    todo = {n: (payload, len(blocks[n])) for n, payload in enumerate(payloads) if payload is not None}
    found = dict(mixed_decoder.decode(mixing_of(coder), todo))
    assert found == {n: blocks[n] for n in todo}
    return payloads


def test_tokens_and_progress_of_blocks(lossless, short_segments, monkeypatch):
    """Progress is told within a block, and sums to all bytes of payload but the last few of each thread."""
    monkeypatch.setattr(mixed_decoder, "_TOLD", 16)
    (coded,) = mixing_of(lossless).encode([TEXT])
    assert coded
    assert coded.tokens == len(mixing_of(lossless).tokenizer.encode(TEXT))
    told: list[float] = []
    assert dict(mixed_decoder.decode(mixing_of(lossless), {0: (coded.data, len(TEXT))}, told.append)) == {0: TEXT}
    assert len(told) > 10
    assert 0.9 * len(coded.data) < sum(told) <= len(coded.data)


def test_odd_blocks(coder, short_segments):
    together = mixed_round_trip(coder, ODD)
    assert sum(payload is not None for payload in together) >= len(ODD) // 2
    assert [data_of(mixing_of(coder), [block])[0] for block in ODD] == together
    payloads = coder.encode([*ODD, b""])
    for block, payload in zip([*ODD, b""], payloads, strict=True):
        assert coder.decode_block(payload.kind, payload.data, len(block)) == block


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), min_size=1, max_size=6))
@example([b"\r" * 300, b"", b"\xc3"])
def test_any_blocks(lossless, blocks):
    mixed_round_trip(lossless, blocks)


@pytest.mark.parametrize("size", [100, 600, 2000])
def test_blocks_longer_than_windows_and_chunks(coder, short_segments, size):
    block = TEXT[:size]
    (payload,) = mixed_round_trip(coder, [block])
    assert payload is not None
    assert len(read_header(payload, size).begins) - 1 == min(8, max(1, size // 64))


def test_more_blocks_than_slots(lossless, short_segments, monkeypatch):
    """Blocks of one to six segments take turns on slots, and end in any order."""
    blocks = [TEXT[n : n + size] for n, size in enumerate([40, 300, 90, 5, 260, 130, 1, 400, 70])]
    payloads = mixed_round_trip(lossless, blocks)
    monkeypatch.setattr(mixed_decoder, "_SLOTS", {"cpu": 9})
    monkeypatch.setattr(mixed_decoder, "_groups", _one_group_of_three_threads)
    found = dict(mixed_decoder.decode(mixing_of(lossless), {n: (p, len(blocks[n])) for n, p in enumerate(payloads)}))
    assert [found[n] for n in range(len(blocks))] == blocks


def _one_group_of_three_threads(mixing, waiting):
    count = mixed_decoder._SLOTS["cpu"]
    distributions = mixing.backend.distributions(count, mixing.window, mixing.order)
    return [mixed_decoder._Group(mixing, distributions, count, 3)]


def test_carriage_returns_cost_next_to_nothing(lossless):
    lines = TEXT[:4000].replace(b". ", b".\n")
    plain, carried = mixed_round_trip(lossless, [lines, lines.replace(b"\n", b"\r\n")])
    assert len(carried) <= len(plain) + 5


def test_bytes_that_are_no_utf8_are_not_lost(lossless):
    """Latin-1 goes through the model as single bytes, without edits."""
    text = "Die größte Lüge über müde Bären. ".encode("latin-1")
    tokens = mixed.tokens_of(text, mixing_of(lossless).tokenizer)
    assert mixing_of(lossless).tokenizer.decode(tokens) == text


def test_kinds(lossless):
    noise = random.Random(0).randbytes(3000)
    assert lossless.encode_block(noise).kind == BYTES
    assert lossless.encode_block(b"").kind == BYTES
    alone = SolidCoder()
    payload = alone.encode_block(TEXT)
    assert payload.kind == BYTES
    assert alone.decode_block(payload.kind, payload.data, len(TEXT)) == TEXT


def test_the_smaller_payload_is_kept(lossless, monkeypatch):
    """Whatever the model makes of a block, no payload is longer than that of context mixing alone."""
    monkeypatch.setattr(solid, "_SAMPLE", 64)
    blocks = [*ODD, TEXT[:3000], random.Random(1).randbytes(500)]
    alone = SolidCoder().encode(blocks)
    for payload, other in zip(lossless.encode(blocks), alone, strict=True):
        assert len(payload.data) <= len(other.data)
        assert payload.kind == MIXED or payload == other


def test_a_sample_is_whole_characters():
    block = "日本語テキスト\n".encode() * 1000
    sample = solid._sample(block)
    assert len(sample) > solid._SAMPLE // 2
    sample.decode()


def test_what_decoding_refuses(lossless):
    (payload,) = data_of(mixing_of(lossless), [TEXT])
    with pytest.raises(MismatchError, match="pack"):
        SolidCoder().decode_block(MIXED, payload, len(TEXT))
    with pytest.raises(FormatError, match="kinds"):
        lossless.decode_block(7, payload, len(TEXT))
    for size in (0, 1, len(TEXT) - 1, len(TEXT) + 9999):
        with pytest.raises(FormatError):
            lossless.decode_block(MIXED, payload, size)
    for cut in (b"", payload[:1], payload[: len(payload) // 2], payload + b"\0", payload + b"\1"):
        with pytest.raises(FormatError):
            lossless.decode_block(MIXED, cut, len(TEXT))
    with contextlib.suppress(FormatError):  # or another text of that size, which the record's CRC-32 tells
        assert lossless.decode_block(MIXED, payload[:-1], len(TEXT)) != TEXT


def test_a_failure_ends_all(lossless):
    """One damaged block among good ones is an error, not a wait."""
    (payload,) = data_of(mixing_of(lossless), [TEXT[:500]])
    blocks = dict.fromkeys(range(12), (payload, 500)) | {5: (payload[:20], 500)}
    with pytest.raises(FormatError, match="block 5"):
        dict(mixed_decoder.decode(mixing_of(lossless), blocks))


def _mutations(payload: bytes, count: int) -> Iterator[bytes]:
    random_ = random.Random(0)
    for _ in range(count):
        data = bytearray(payload)
        for _ in range(random_.choice((1, 1, 2, 5))):
            what, at = random_.randrange(4), random_.randrange(len(data))
            if what == 0:
                data[at] ^= 1 << random_.randrange(8)
            elif what == 1:
                data[at] = random_.choice((0, 255, random_.randrange(256)))
            elif what == 2:
                data[at : at + random_.randrange(1, 9)] = b""
            else:
                data[at:at] = random_.randbytes(random_.randrange(1, 9))
            data = data or bytearray(1)
        yield bytes(data)


def _survives(coder: SolidCoder, count: int) -> None:
    """Damaged payloads are errors of this package, or as many bytes as asked for, never anything else."""
    block = TEXT[:150].replace(b" ", b"\r\n", 3) + b"\xff\xc3" + TEXT[150:300]
    (payload,) = data_of(mixing_of(coder), [block])
    assert payload is not None
    wrong = 0
    for data in _mutations(payload, count):
        try:
            wrong += coder.decode_block(MIXED, data, len(block)) != block
        except CodecError:
            continue
    assert wrong <= count // 50 + 2  # what the record's CRC is for


def test_damaged_payloads(coder, short_segments):
    _survives(coder, 100)


@pytest.mark.long
def test_20_000_damaged_payloads(coder, short_segments):
    _survives(coder, 20_000)


def test_sums_are_of_weights(lossless):
    """Against the levels of the model, one token after the other, in the order of bytes."""
    from codec.entropy import frequencies

    coder, m = lossless.coder, mixing_of(lossless)
    import torch

    from codec.exact.model import ExactModel

    model = ExactModel(coder.weights)
    tokens = np.concatenate(([1], coder.tokenizer.encode(TEXT[:60]).astype(np.int64)))[:30]
    levels = model.levels(*model.forward(torch.from_numpy(tokens[None])))[0]
    weights = frequencies.weights(levels).numpy()[:, m.order] + 1
    sums = whole_sums(m.backend, [tokens], m.order, m.backend.past(1, m.window))
    assert np.array_equal(sums[:, 1:], weights.cumsum(1))
    assert not sums[:, 0].any()
