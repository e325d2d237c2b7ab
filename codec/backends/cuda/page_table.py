"""Which pages of a cache each lane has: a lane takes one more where it needs it, and gives all back when it ends.

Page 0 is nobody's: a lane that has no page for its next place writes there, and waits until others have ended.
"""

from collections.abc import Sequence

import numpy as np

from codec.exact.backend import Integers

_NEVER = 1 << 62


class Pages:
    """Pages 1 to `count`, and at least `most`, for lanes that need up to `most` each.

    The lane that began first always gets its pages: enough for it are kept back. So all lanes end, one after the other
    if need be.

    Attributes:
        table: int64 [lanes, most], the page of each part of a lane's window, 0 where it has none. Where steps use a
            copy, it is to be made anew when `reach` says so, before the next of them.
    """

    def __init__(self, lanes: int, most: int, count: int):
        self.table = np.zeros((lanes, most), np.int64)
        self._held = np.zeros(lanes, np.int64)
        self._turns = np.full(lanes, _NEVER)  # in which they began
        self._begun, self._changed = 0, False
        self._free = list(range(max(count, most), 0, -1))

    def begin(self, lanes: Sequence[int]) -> None:
        """Lanes begin anew, without a page."""
        self.end(lanes)
        self._turns[list(lanes)] = self._begun + np.arange(len(lanes))
        self._begun += len(lanes)

    def end(self, lanes: Sequence[int]) -> None:
        """Take back the pages of lanes, which need none until they begin."""
        for lane in lanes:
            self._free += self.table[lane, : self._held[lane]].tolist()
            self._changed = self._changed or bool(self._held[lane])
        self.table[list(lanes)] = self._held[list(lanes)] = 0
        self._turns[list(lanes)] = _NEVER

    def reach(self, wanted: Integers) -> bool:
        """Give each lane `wanted` [lanes] pages in all, as far as there are any.

        Returns:
            whether the table has changed since the call before.
        """
        most = self.table.shape[1]
        wanted = np.where(self._turns < _NEVER, wanted, 0)
        short = np.flatnonzero(wanted > self._held)
        first = int(self._turns.argmin())
        for lane in short[self._turns[short].argsort()].tolist():
            room = len(self._free) - (0 if lane == first else most - self._held[first])
            if room <= 0:
                break
            held = self._held[lane]
            pages = [self._free.pop() for _ in range(min(wanted[lane] - held, room))]
            self.table[lane, held : held + len(pages)] = pages
            self._held[lane] += len(pages)
            self._changed = True
        changed, self._changed = self._changed, False
        return changed

    def keep(self, lanes: Sequence[int]) -> None:
        """Drop all lanes but these, which are numbered in this order from now on."""
        self.end(sorted(set(range(len(self._held))) - set(lanes)))
        index = list(lanes)
        self.table, self._held, self._turns = self.table[index], self._held[index], self._turns[index]
