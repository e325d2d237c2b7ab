"""Share documents out to several devices, so that all end at about the same time."""

import heapq
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from codec.text.coder import FEWEST_SLOTS, MOST_SLOTS


def equal_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Distribute items over at most `count` lists of about the same sum of sizes, none empty; return indices.

    The longest item goes first, to the list with the least sum.

    >>> equal_shares([1, 5, 3, 4], 2)
    [[1, 0], [3, 2]]
    """
    loads = [(0, n) for n in range(min(count, len(sizes)))]
    found: list[list[int]] = [[] for _ in loads]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, n = loads[0]
        found[n].append(i)
        heapq.heapreplace(loads, (load + sizes[i] + 1, n))  # an empty document is some work, too
    return found


def shares_to_decode(sizes: Sequence[int], count: int, kind: str) -> list[list[int]]:
    """Distribute documents over at most `count` devices by length: the longest to the first, and so on; return indices.

    A device takes at least as many steps as its longest document has tokens, and a step costs about as much as
    `FEWEST_SLOTS` slots beside the slots themselves. So equal lengths go together: only one device takes the steps of
    the longest documents, and it is given less text for that.

    Args:
        sizes: bytes of payload of each document.
        count: of devices.
        kind: of each of them, cpu or cuda.

    >>> shares_to_decode([2, 900, 2, 300, 300, 300], 2, "cpu")
    [[1], [3, 4, 5, 0, 2]]
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    ends = np.cumsum([sizes[i] + 1 for i in order])
    fewest, most = FEWEST_SLOTS[kind], MOST_SLOTS[kind]

    def begins(limit: int) -> list[int]:
        """Return where shares begin that cost at most `limit` each, or hold one document."""
        found: list[int] = []
        at = 0
        while at < len(order) and len(found) <= count:
            found.append(at)
            before = int(ends[at - 1]) if at else 0
            room = min(limit - fewest * (sizes[order[at]] + 1), limit * most // (fewest + most))
            at = max(at + 1, int(np.searchsorted(ends, before + room, "right")))
        return found

    ceiling = (fewest + 1) * (int(ends[-1]) if order else 0)
    found = begins(bisect_left(range(ceiling), 1, key=lambda limit: len(begins(limit)) <= count))
    return [order[a:b] for a, b in zip(found, [*found[1:], len(order)], strict=True)]
