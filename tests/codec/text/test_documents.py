"""codec.text.documents: what becomes a stored record, what a modelled one, and what each says it cost."""

import zlib

import numpy as np
import pytest
import zstandard

from codec.model.tokenizer import BOS
from codec.text import documents
from codec.text.documents import MODELLED, STORED, prepare, write_record
from codec.text.stored import store, unstore
from tests.support.helpers import lossless_tokenizer
from trainer.data.sample import sp1024

TEXT = b"The cat sat on the mat.\nIt was a mat for cats, and for nothing else."
UNIFORM = 1 << 14  # of 2^24: 10 bits a token


def record(document: bytes, frequency: int = UNIFORM, model_only: bool = False) -> documents.Record:
    """A record of a model that gives every token this frequency."""
    prepared = prepare(document, sp1024(), model_only)
    count = len(prepared.stream) - 1
    return write_record(prepared, np.full(count, 5), np.full(count, frequency), 7.5, 24, model_only)


def test_a_document_is_bos_tokens_bos():
    prepared = prepare(TEXT, sp1024())
    assert prepared.stream.dtype == np.int64
    assert prepared.stream[[0, -1]].tolist() == [BOS, BOS]
    assert np.array_equal(prepared.stream[1:-1], sp1024().encode(TEXT))
    assert (prepared.original, prepared.canonical) == (TEXT, TEXT.replace(b"\n", b" "))
    assert prepared.edits[:, [1, 3]].tolist() == [[1, 1]]
    assert prepared.shrunk == len(zstandard.compress(TEXT))
    assert not prepared.hopeless
    assert len(prepare(TEXT, lossless_tokenizer()).edits) == 0


@pytest.mark.parametrize("document", [b"", b"<s></s><unk><0x41>", b"\0", b"\xff\xfe", "▁▁ ▁�".encode(), b" "])
def test_model_only_always_asks_the_model(document):
    prepared = prepare(document, sp1024(), model_only=True)
    assert not prepared.hopeless
    assert not (prepared.stream[1:-1] == BOS).any()
    found = record(document, model_only=True)
    assert (found.mode, found.tokens) == (MODELLED, len(prepared.stream) - 1)
    assert (found.text_bytes, found.canonical_bytes) == (len(document), len(prepared.canonical))


def test_what_a_modelled_record_says():
    found = record(TEXT, UNIFORM * 16)
    assert found.mode == MODELLED
    assert found.crc == zlib.crc32(TEXT)
    assert (found.text_bytes, found.canonical_bytes, found.exact_bits) == (len(TEXT), len(TEXT), 7.5)
    assert found.ideal_bits == 6 * found.tokens
    assert 0 <= 8 * len(found.payload) - found.ideal_bits < 60  # one edit


def test_the_smaller_record_is_kept():
    stored = len(store(TEXT))
    tokens = len(sp1024().encode(TEXT)) + 1
    for bits in range(1, 25):
        found, modelled = record(TEXT, 1 << (24 - bits)), record(TEXT, 1 << (24 - bits), model_only=True)
        assert len(found.payload) == min(stored, len(modelled.payload))
        assert found.mode == (STORED if stored <= len(modelled.payload) else MODELLED)
        assert modelled.ideal_bits == bits * tokens
    assert found.mode == STORED
    assert (found.tokens, found.exact_bits, found.ideal_bits) == (0, 0.0, 0.0)
    assert (found.text_bytes, found.canonical_bytes) == (len(TEXT), len(TEXT))


@pytest.mark.parametrize("document", [b"", b"ab" * 5000, bytes(range(128, 256)) * 4, b"\0" * 1000], ids=len)
def test_hopeless_documents_do_not_reach_the_model(document):
    assert prepare(document, sp1024()).hopeless == bool(document)
    found = record(document)
    assert (found.mode, found.canonical_bytes) == (STORED, len(document))
    assert unstore(found.payload, len(document)) == document
    assert (found.payload == b"") == (document == b"")
