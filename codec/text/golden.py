"""Compare a golden record with what this machine makes of its document: intervals and edits in one range-coded stream.

An encoder and a decoder of the same machine repeat each other's mistakes. So a round trip says nothing about compiled
code that does not do what its source says. The bytes of the golden record are pinned here instead. `codec.pack.golden`
is the same for packs.
"""

from functools import cache

import numpy as np

from codec import compiled
from codec.edits import coder as edits
from codec.entropy import range_coder
from codec.entropy.range_coder import State
from codec.errors import CodecError
from codec.numerics.widths import FEW_BITS

_ORIGINAL = (
    "GOLDEN RECORD\n\n"
    "A line that is broken\nwhere another line\nof about that length\nwould end, and one\r\nthat a carriage ends.\n"
    "  * An ending\u2026 of three points,\n  * \uff08wide\uff09 signs\uff1a \u2103, \u00bd, \ufb01;\n"
    '"Quoted," they say (aloud),\nand: "not so!"\n'
    "\tand a tab; a space \nbefore, and after\n the line. Two  of them.\n\n\n"
    "It goes on \x00\xff where \u00e0 la carte, na\u0308ively, nothing has a name: \x1b[0m \u2460.\n"
    "Then there are lines, such\nas those of the beginning,\nfrom which probabilities\nhave been learned.\n\n"
)
_CANONICAL = (
    "GOLDEN RECORD "
    "A line that is broken where another line of about that length would end, and one that a carriage ends. "
    "* An ending... of three points, * (wide) signs: \u00b0C, 1\u20442, fi; "
    '"Quoted," they say (aloud), and: "not so!" '
    "and a tab; a space before, and after the line. Two of them. "
    "It goes on \xff where \u00e0 la carte, n\u00e4ively, nothing has a name: [0m 1. "
    "Then there are lines, such as those of the beginning, from which probabilities have been learned."
)
_TOTAL = 1 << FEW_BITS
_FREQUENCIES = np.array([1, _TOTAL - 40, 2, 77_777, 1 << 23, 5, 65_536, 12_345_678] * 5)
_STARTS = np.arange(len(_FREQUENCIES)) * 997_001 % (_TOTAL + 1 - _FREQUENCIES)

RECORD = bytes.fromhex(
    "0000001e6d119b270d2def1df9ac7665d7db7c65b5325100853f25105a5840098c12f4308e4a709d593da72661e8db2a4ddef5c24555671f"
    "af216f77df286f79b68e41c7419545ebdbc0b46995396339e0cf302a95ddf14e09cd8aec564b61908e36045f5a4be2f728e24d32fd8966f5"
    "79dcb1cd5dad35ae"
)
"""The bytes of the golden record. Any change of what the coder of intervals or of edits writes changes them, together
with the formats' versions."""


def encode_record() -> bytes:
    """Encode the golden record: some intervals, then the edits of a text."""
    original, canonical = (np.frombuffer(text.encode(), np.uint8) for text in (_ORIGINAL, _CANONICAL))
    found = edits.align(canonical, original)
    state = range_coder.new_encoder()
    out = np.zeros(range_coder.MAX_SYMBOL_BYTES * len(_STARTS) + edits.edits_capacity(canonical, found), np.uint8)
    range_coder.encode_intervals(state, out, _STARTS, _FREQUENCIES, FEW_BITS)
    edits.put_edits(state, out, canonical, original, found, True)
    return out[: range_coder.finish(state, out)].tobytes()


def decode_record(record: bytes) -> bytes:
    """Decode the text of the golden record."""
    data, state = np.frombuffer(record, np.uint8), range_coder.new_encoder()
    range_coder.start_decoder(state, data)
    for start, frequency in zip(_STARTS, _FREQUENCIES, strict=True):
        _take(state, data, int(start), int(frequency))
    return edits.take_edits(state, data, _CANONICAL.encode(), True)


def _take(state: State, data: np.ndarray, start: int, frequency: int) -> None:
    unit = state[1] >> np.uint64(FEW_BITS)
    if start <= range_coder.target(state, unit, _TOTAL) < start + frequency:
        range_coder.take(state, data, start, frequency, unit)


@cache
def check() -> None:
    """Encode and decode the golden record, once a process.

    Raises:
        CodecError: other bytes come out than this version pins.
    """
    made = encode_record()
    if made != RECORD or decode_record(RECORD) != _ORIGINAL.encode():
        raise CodecError(
            f"golden record of text: {len(made)} bytes {made.hex()}, expected {len(RECORD)} bytes {RECORD.hex()}; this "
            "machine would write archives that no other reads: a source was changed, or its compiler or processor "
            "fails; install underpar again"
        )


@cache
def check_once() -> None:
    """Check the golden record unless an earlier process did so with the same sources; errors as of `check`."""
    compiled.check_once("text", check)
