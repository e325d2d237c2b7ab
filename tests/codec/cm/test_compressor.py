"""Bytes come back, cost little where they say nothing, and damage never goes beyond the arrays."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import cache
from codec.cm import compressor
from codec.cm.compressor import PLAIN, PRIMERS, RECORDS, compress, decompress, primer
from codec.errors import FormatError

NOISE = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()
TABLE = b"".join(bytes([0, 7, n & 255, n >> 3 & 255, 0, 255, 1, 2]) for n in range(700))
SENTENCE = b"The quick brown fox jumps over the lazy dog; then it does so again.\n"

SAMPLES = {
    "nothing": b"",
    "one byte": b"\x00",
    "all bytes": bytes(range(256)) * 3,
    "a long run": b"a" * 3000,
    "noise": NOISE,
    "a table": TABLE,
    "text": SENTENCE * 20,
    "program": primer("c")[5000:8000],
    "not UTF-8": SENTENCE + b"\xff\xfe\x80" * 30 + SENTENCE,
}

DIGESTS = {
    "nothing": "e3b0c44298fc1c14",
    "one byte": "a8d9e571a3f6f79d",
    "all bytes": "4688a23b182ce39d",
    "a long run": "62f846377b9849d8",
    "noise": "343e9fffa7111e73",
    "a table": "7540a5431b307b5c",
    "text": "01851bb7a4f7eefa",
    "program": "686925825a471048",
    "not UTF-8": "b67aea1ca20afccc",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_comes_back(name):
    data = SAMPLES[name]
    payload = compress(data)
    assert decompress(payload, len(data)) == data
    assert len(payload) <= len(data) * 1.02 + 8
    assert hashlib.sha256(payload).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("kind", [PLAIN, *range(1, len(PRIMERS) + 1), RECORDS])
def test_any_kind_codes_anything(kind):
    for data in (TABLE[:600], SENTENCE, NOISE[:300]):
        payload = compress(data, kind)
        assert payload[0] == kind
        assert decompress(payload, len(data)) == data


@given(st.binary(max_size=300), st.sampled_from((PLAIN, 1, RECORDS)))
@settings(max_examples=40, deadline=None)
def test_any_bytes_come_back(data, kind):
    assert decompress(compress(data, kind), len(data)) == data


def test_what_repeats_costs_little():
    assert len(compress(SENTENCE * 20)) < len(compress(SENTENCE)) + 30
    assert len(compress(NOISE + NOISE)) < len(NOISE) * 1.05
    assert len(compress(TABLE)) < len(TABLE) // 12


def test_a_primer_pays():
    data = primer("c")[5000:8000]
    assert len(compress(data, 1 + PRIMERS.index("c"))) < len(compress(data, PLAIN)) // 4


@pytest.mark.parametrize("name", ["text", "a table", "noise"])
def test_damage_is_an_error_or_other_bytes_of_the_same_size(name):
    data, random = SAMPLES[name][:1500], np.random.default_rng(2)
    payload, errors = compress(data), 0
    for _ in range(60):
        damaged = bytearray(payload)
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        try:
            assert len(decompress(bytes(damaged), len(data))) == len(data)
        except FormatError:
            errors += 1
    assert errors > 40


def test_lengths_that_do_not_fit_are_errors():
    payload = compress(SENTENCE)
    for size in (0, len(SENTENCE) - 30, len(SENTENCE) + 400):
        with pytest.raises(FormatError):
            decompress(payload, size)
    for broken in (
        b"",
        b"\x63abc",
        bytes([RECORDS]),
        bytes([RECORDS, 0, 0]),
        bytes([RECORDS, 255, 255, 1]),
        payload[:-4],
    ):
        with pytest.raises(FormatError):
            decompress(broken, len(SENTENCE))
    with pytest.raises(FormatError):
        decompress(payload, 0)


def test_what_a_primer_teaches_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    found = []
    for _ in range(2):
        compressor._primed.cache_clear()
        found.append(compressor._primed(1, compressor._SHORT))
    compressor._primed.cache_clear()
    monkeypatch.setattr(compressor, "_SHORT", 0)  # longer texts' are not cached
    found.append(compressor._primed(1, 15))
    compressor._primed.cache_clear()
    assert [path.name for path in (tmp_path / "primed").iterdir()] == ["1"]
    for learned, cached, other in zip(*found, strict=True):
        assert np.array_equal(learned, cached)
        assert np.array_equal(learned, other)
    assert found[1].nodes.any()
