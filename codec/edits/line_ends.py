"""Code line ends apart from text: the model sees line feeds only, and the other line ends are coded beside the tokens.

The line ends of a text are LF, CRLF and CR. Each line end is coded as up to two binary decisions: whether it is the
same as the one before, and otherwise which of the other two. The probabilities adapt, and are chosen by the last two
line ends. So a text whose line ends are all the same costs a few bits, and a rare exception costs some 20.
"""

import re

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled
from codec.entropy.adaptive_bit import EVEN, MOST, code_adaptive
from codec.entropy.range_coder import State

KINDS = (b"\n", b"\r\n", b"\r")

_LINE_END = re.compile(rb"\r\n?|\n")
_ROOM = 4  # bytes that a line end may add to a code: two for each decision


def split(data: bytes) -> tuple[bytes, NDArray[np.uint8]]:
    r"""Return the text with line feeds only, and the kind of each line end, uint8 [lines]; empty if all are line feeds.

    >>> split(b"a\r\nb\nc\r")
    (b'a\nb\nc\n', array([1, 0, 2], dtype=uint8))
    """
    if b"\r" not in data:
        return data, np.zeros(0, np.uint8)
    kinds = np.array([KINDS.index(found) for found in _LINE_END.findall(data)], np.uint8)
    return _LINE_END.sub(b"\n", data), kinds


def join(text: bytes, kinds: NDArray[np.uint8]) -> bytes:
    """Return the bytes that `split` was given; line feeds beyond the last kind stay line feeds."""
    if not len(kinds):
        return text
    lines = text.split(b"\n")
    ends = [KINDS[kind] for kind in kinds[: len(lines) - 1].tolist()]
    ends += [b"\n"] * (len(lines) - 1 - len(ends))
    return b"".join([part for line, end in zip(lines, [*ends, b""], strict=True) for part in (line, end)])


def room(count: int) -> int:
    """Return the most bytes that `code` adds to a code for `count` line ends."""
    return _ROOM * count


@compiled
def _code(state, stream, kinds, probabilities, counts, decode):
    last = before = 0
    for n in range(len(kinds)):
        slot, wanted = 2 * (3 * before + last), np.int64(kinds[n])
        found = last
        if code_adaptive(state, stream, probabilities, counts, slot, 1 if wanted != last else 0, MOST, decode):
            lower, upper = (1 if last == 0 else 0), (1 if last == 2 else 2)
            bit = code_adaptive(
                state, stream, probabilities, counts, slot + 1, 1 if wanted == upper else 0, MOST, decode
            )
            found = upper if bit else lower
        kinds[n] = found
        before, last = last, found


def code(state: State, stream: NDArray[np.uint8], kinds: NDArray[np.uint8], decode: bool) -> None:
    """Encode the kinds of line ends into a range coder's stream, or decode them in place."""
    _code(state, stream, kinds, np.full(18, EVEN, np.int64), np.zeros(18, np.int64), decode)
