"""Compare golden blocks, of text and of records, with what this machine makes of them by context mixing.

`codec.text.golden` says why a round trip is not enough.
"""

from functools import cache

from codec import compiled
from codec.cm.compressor import PLAIN, RECORDS, compress, decompress
from codec.errors import CodecError
from codec.startup import starting

TEXT = (
    b"It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,\n"
    b"  it was the epoch of belief: 1775, 1776, 1777.\n"
) * 3 + bytes(range(200, 256))
"""Words, numbers, an indented line, matches of both lengths, and bytes that are no text."""

BLOCKS = {
    PLAIN: bytes.fromhex(
        "003c28365bf86b9dbb994903123703f619d1cb386ff1a8eb584b4c298ad1027792efd43691a77fff6f698c978b9019ea88a5e0cb1c946383"
        "d25de3d31ceea8b1f377dea1da83a140f8226de1b3d88cba9f85e7143ce04382bb624e0e4b9f5a56e37b2794df2ff57f8467daf2eee8d5c5"
        "21062dad26"
    ),
    RECORDS: bytes.fromhex(
        "ff9e003c582d3d0785757ce9685b75c83fbaa36ed133ed0e68219a1f8fac38eb44e63bfff9872d941452f90827ae021c9b360541106e4d18"
        "174764bd746e4683893b55232803bd36f6171a09aa59d40db3761dce729e72007394c2a46bd0711154801c039ea936e0252cecf90240ef31"
        "2e5143123da16aaad71d924ebda86f2bf5df"
    ),
}
"""The payload of the text by kind. Any change of context mixing changes them, together with the archive's version."""


def check() -> None:
    """Encode and decode the golden blocks.

    Raises:
        CodecError: other bytes come out than this version pins.
    """
    for kind, block in BLOCKS.items():
        made = compress(TEXT, kind)
        if made != block or decompress(block, len(TEXT)) != TEXT:
            raise CodecError(
                f"golden block of kind {kind}: {len(made)} bytes {made.hex()}, expected {len(block)} bytes "
                f"{block.hex()}; this machine would write archives that no other reads: a source was changed, or its "
                "compiler or processor fails; install underpar again"
            )


@cache
@starting()
def check_once() -> None:
    """Check the golden blocks unless an earlier process did so with the same sources; errors as of `check`."""
    compiled.check_once("blocks", check)
