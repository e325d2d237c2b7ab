"""Compare golden sections of a pack with what this machine makes of their integers: matrices and steps.

`codec.text.golden` says why, and is the same for archives.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from codec.entropy.adaptive_table import decode_words, encode_words
from codec.errors import CodecError
from codec.pack.context_coder import decode_matrices, encode_matrices
from codec.quantization.quantized import Quantized, power
from codec.quantization.trellis import transitions

_ROWS, _COLUMNS, _STATES = 24, 16, 8

MATRICES = bytes.fromhex(
    "1031382704f2853c0be410441730b6a803c116b030f7c7f00f9a4ecd04fcb83639f194a9fbbd17a92201e923378c03873c7e96779591a03a"
    "d3cb4063b30ce7be846f4368861e2ee68b82be3c79b789058496855064c376b6adfdceb4c839cc0b864800efe27e20f6b3239cdf49a69bf1"
    "fa583db85f4f28d8ed21c243a753b137657ecd0fa639a600d7c78854be85e2c88f9df2740f364565e457081dfbd891f420fde6317c09068d"
    "5321f5a2e92a5f61527527c2a5a1d98cc544f12f2129fc7e563a922da0507ebab69d1bcbc5cacbbf25113c0fa39dae3d6378ea67fb2c06e3"
    "42f985de9a9bd41f25cfa834dee4b719d2f6c08eca5be5cc1663891eadac485ca7eac666f6b83bf8bc914b1caea52295858d4cd7d92b166e"
    "820b"
)
WORDS = bytes.fromhex(
    "88349b37d1508035c98bf80bfe32b583c318e19391f01fcd94cb5e2e73227555ee183c74365752452dec83e8b007d6394fb77da80579ef24"
    "a45831e17310a352ffc67cdea04d1bc46fd006"
)


def _words() -> NDArray[np.uint16]:
    return (15_000 + np.arange(48) * 7919 % 251 + (np.arange(48) % 7 == 0) * 20_000).astype(np.uint16)


def _matrices() -> list[tuple[int, Quantized]]:
    """Make a matrix with a step for each row and column and a trellis, and one with neither, in two groups."""
    wide = np.arange(_ROWS * _COLUMNS, dtype=np.int64).reshape(_ROWS, _COLUMNS) * 2_654_435_761 % (1 << 32)
    sizes = (wide >> 20) % 9 * (wide >> 24) % 5 * (1 + 60 * (wide % 31 == 0))
    signed = (np.where(wide >> 15 & 1, sizes, -sizes)).astype(np.int32)
    rows, columns = power(np.arange(_ROWS, dtype=np.int32) % 11 - 5), power(np.arange(_COLUMNS, dtype=np.int32) % 7)
    path, state, following = np.empty_like(signed), 0, transitions(_STATES)
    for c in range(_COLUMNS):
        for r in range(_ROWS):
            path[r, c] = 2 * signed[r, c] + (state & 1)
            state = following[state, (path[r, c] >> 1) & 1]
    plain = Quantized(signed[:, :7] * 9, np.ones(_ROWS, np.float32))
    return [(0, Quantized(path, rows, columns, _STATES)), (1, plain)]


@cache
def check() -> None:
    """Encode and decode the golden sections, once a process.

    Raises:
        CodecError: other bytes or integers come out than this version pins.
    """
    matrices, words = _matrices(), _words()
    stream, coded = encode_matrices(matrices, 2)
    for name, made, expected in (("matrices", stream, MATRICES), ("steps", encode_words(words), WORDS)):
        if made != expected:
            raise CodecError(
                f"golden record of {name}: {len(made)} bytes {made.hex()}, expected {len(expected)} bytes "
                f"{expected.hex()}; this machine would misread packs: a source was changed, or its compiler or "
                "processor fails; install underpar again"
            )
    empty = [(g, Quantized(np.zeros_like(m.symbols), m.rows, m.columns, m.states)) for g, m in matrices]
    decode_matrices(MATRICES, [(g, m, c.typical) for (g, m), c in zip(empty, coded, strict=True)], 2)
    same = all(np.array_equal(a.symbols, b.symbols) for (_, a), (_, b) in zip(matrices, empty, strict=True))
    if not same or not np.array_equal(decode_words(WORDS, len(words)), words):
        raise CodecError(
            "golden record of matrices and steps: other integers come out than went in; this machine's compiler or "
            "processor fails; install underpar again"
        )
