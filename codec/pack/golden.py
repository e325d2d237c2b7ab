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
    "efcec7d8fb0d78c3f32026fff2cf464ed0b32ea61a8f443e38b76337d9a436a3ec53c910b53bf8c316117ded612dd9f531a2d6c84bec3a06"
    "2185d23d58a0c49cbec8bdceb75396391ddf0c0770d8825aeb54d5fa5458d99d08d5eb2a1af516894fb2404a389f45ad5c8ec86dc945f47a"
    "b2475dde5f19813f68e435f0e595cf6889afad8bcd235fe9cdfb38568dc2d347b49b0373272f1c9a78e91b33eb9e5a032b4c4a6a71863287"
    "7a804feb2457c79f062538569ac191a9aee0deb15411b0f15aa96c51a970656feb4314e2aad915f5f3e8510c4bc11a599c4f799f36cad4cb"
    "77d89fea0301e93bf4855c7fa73fd9d239e61e3d66eeb8d3779a2e74e6770c72ee3820e06be6e6dc0e0e8de0ab9d045e36ebe59dfb8b08df"
    "9b20"
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
