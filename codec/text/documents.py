"""Prepare a document for the coder, and write its record: tokens and edits under the model, or stored bytes.

A document is coded on its own. The model sees the token that begins the document and the document's earlier tokens;
another token ends it. The edits, which restore what the tokenizer loses (`codec.edits.coder`), follow in the same
range-coded stream. Where a general compressor needs fewer bytes, the document is stored instead (`codec.text.stored`).
"""

import zlib
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from codec.edits import coder as patch
from codec.entropy import range_coder
from codec.model.byte_pairs import AnyTokenizer
from codec.text.stored import store

STORED, MODELLED = 0, 1

_LEVEL = 3  # of zstandard: a thirtieth of level 19's time, which made 0.88 of the bytes or more of 2,720 documents
_HOPELESS_RATIO = 32  # text that zstandard shrinks this far is repetition, not language: no need to ask the model
_HOPELESS_EDITS = 4  # as is a document of which every 4th byte must be edited
_SURE = 0.5  # of zstandard's bytes: PPMd makes 0.66 of them where text is long, and less is the model's


@dataclass(frozen=True)
class Record:
    """A coded document and what its coding cost."""

    mode: int  # STORED or MODELLED
    payload: bytes
    crc: int  # CRC-32 of the original bytes
    text_bytes: int
    canonical_bytes: int  # that the tokens stand for, but never more than `text_bytes`
    tokens: int  # coded with the model, the end of the document included; 0 where stored
    exact_bits: float  # cross-entropy of the exact model
    ideal_bits: float  # code length of the integer frequencies


@dataclass(frozen=True)
class Prepared:
    """A document ready for the model."""

    original: bytes
    canonical: bytes
    stream: NDArray[np.int64]  # [T + 2]: the token that begins a document, the tokens, the one that ends it
    edits: patch.Edits
    shrunk: int  # bytes of the document under zstandard, 0 for an empty document
    hopeless: bool  # not worth asking the model
    lossy: bool  # whether its tokenizer loses something of most texts


def prepare(document: bytes, tokenizer: AnyTokenizer, model_only: bool = False) -> Prepared:
    """Tokenize a document and find its edits.

    Args:
        document: any bytes.
        tokenizer: of the model.
        model_only: call no document hopeless: the model codes it, whatever that costs.
    """
    shrunk = len(zstandard.ZstdCompressor(level=_LEVEL).compress(document)) if document else 0
    empty = np.zeros((0, 4), np.int64)
    begin, end = tokenizer.begin, tokenizer.end
    nothing = Prepared(document, b"", np.array([begin, end]), empty, shrunk, True, tokenizer.lossy)
    if not model_only and shrunk * _HOPELESS_RATIO < len(document):
        return nothing
    if not model_only and _undecodable(document) * _HOPELESS_EDITS > len(document):
        return nothing  # told before the aligner has to look for what agrees
    tokens = tokenizer.encode(document).astype(np.int64)
    canonical = tokenizer.decode(tokens)
    edits = empty
    if canonical != document:
        edits = patch.align(np.frombuffer(canonical, np.uint8), np.frombuffer(document, np.uint8))
    if not model_only and int(edits[:, 3].sum()) * _HOPELESS_EDITS > len(document):
        return nothing
    stream = np.concatenate(([begin], tokens, [end]))
    return Prepared(document, canonical, stream, edits, shrunk, False, tokenizer.lossy)


def _undecodable(document: bytes) -> int:
    """Return the least number of edits that restore the bytes which are not UTF-8."""
    return document.decode("utf-8", "replace").count("\ufffd") - document.count("\ufffd".encode())


def write_record(
    document: Prepared,
    starts: NDArray[np.int64],
    frequencies: NDArray[np.int64],
    exact_bits: float,
    total_bits: int,
    model_only: bool = False,
) -> Record:
    """Code a prepared document under the model's intervals; return the smaller of the modelled and the stored record.

    Args:
        document: as `prepare` made it.
        starts: int64 [T + 1], cumulative frequencies below the document's tokens and below the token that ends it.
        frequencies: int64 [T + 1], of the same tokens, of a total of 2^total_bits.
        exact_bits: cross-entropy of the exact model, for the report.
        total_bits: see `frequencies`.
        model_only: return the modelled record even where the stored one is smaller.
    """
    crc, size = zlib.crc32(document.original), len(document.original)
    if document.hopeless:
        return _stored(document)
    state = range_coder.new_encoder()
    canonical, original = (np.frombuffer(b, np.uint8) for b in (document.canonical, document.original))
    room = range_coder.MAX_SYMBOL_BYTES * len(starts) + patch.edits_capacity(canonical, document.edits)
    out = np.zeros(room, np.uint8)
    range_coder.encode_intervals(state, out, starts, frequencies, total_bits)
    patch.put_edits(state, out, canonical, original, document.edits, document.lossy)
    payload = out[: range_coder.finish(state, out)].tobytes()
    if not model_only and len(payload) > _SURE * document.shrunk:
        stored = _stored(document)
        if len(stored.payload) <= len(payload):
            return stored
    ideal = float(total_bits * len(starts) - np.log2(frequencies).sum())
    return Record(MODELLED, payload, crc, size, min(len(document.canonical), size), len(starts), exact_bits, ideal)


def _stored(document: Prepared) -> Record:
    size = len(document.original)
    payload = store(document.original)
    canonical = min(len(document.canonical) or size, size)
    return Record(STORED, payload, zlib.crc32(document.original), size, canonical, 0, 0.0, 0.0)
