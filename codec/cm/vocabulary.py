"""Sort the tokens of a language model by their bytes, so that all tokens with the same first bytes are an interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Vocabulary(NamedTuple):
    """Tokens in the order of their bytes; tokens with equal bytes, in the order of ids."""

    tokens: NDArray[np.int32]  # [V]: ids
    ranks: NDArray[np.int32]  # [V]: where an id is among them
    begins: NDArray[np.int32]  # [V + 1]: where a token's bytes begin
    text: NDArray[np.uint8]  # all of them


def sort(token_bytes: Sequence[bytes]) -> Vocabulary:
    """Sort tokens by their bytes; control tokens have none.

    >>> sort([b"", b"a", b"the", b"th"]).tokens.tolist()
    [0, 1, 3, 2]
    """
    tokens = np.array(sorted(range(len(token_bytes)), key=lambda n: (token_bytes[n], n)), np.int32)
    ranks = np.empty_like(tokens)
    ranks[tokens] = np.arange(len(tokens), dtype=np.int32)
    begins = np.cumsum([0, *(len(token_bytes[n]) for n in tokens)]).astype(np.int32)
    text = np.array(list(b"".join(token_bytes[n] for n in tokens)), np.uint8)
    return Vocabulary(tokens, ranks, begins, text)
