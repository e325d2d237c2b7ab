"""One binary decision in `codec.entropy.range_coder`."""

import numpy as np

from codec.cm.compiled import compiled
from codec.entropy import range_coder
from codec.entropy.mixing import SHARE_BITS


@compiled
def code_bit(state, stream, share, bit, decode):
    """Code one bit whose probability of a one is `share` / 2^16; returns it."""
    unit = state[1] >> np.uint64(SHARE_BITS)
    zeros = (1 << SHARE_BITS) - share
    if decode:
        bit = 1 if range_coder.target(state, unit, 1 << SHARE_BITS) >= zeros else 0
    start, size = (zeros, share) if bit else (0, zeros)
    if decode:
        range_coder.take(state, stream, start, size, unit)
    else:
        range_coder.put(state, stream, start, size, unit)
    return bit
