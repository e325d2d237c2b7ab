"""Assign pages of the KV cache to decoding slots.

A slot gets a page when the slot's document needs one more page, and gives all pages back when the document ends. Page 0
belongs to no slot. A slot without a page for its next position writes to page 0, and waits until other slots' documents
end.
"""

from collections.abc import Sequence

import numpy as np

from codec.exact.backend import Integers

_NEVER = 1 << 62


class Pages:
    """The page table of decoding slots, and the free pages.

    Enough pages are always kept for the slot whose document began first. So every document ends, in the worst case one
    document after the other.

    Args:
        slots: how many slots there are.
        most: how many pages a slot needs at most.
        count: how many pages there are beside page 0; `most` if `count` is smaller.

    Attributes:
        table: int64 [slots, most], the page of each part of a slot's window, 0 without a page. A copy of the table on
            a device must be renewed before the next step if `reach` returns true.
    """

    def __init__(self, slots: int, most: int, count: int):
        self.table = np.zeros((slots, most), np.int64)
        self._held = np.zeros(slots, np.int64)
        self._turns = np.full(slots, _NEVER)  # order in which the slots' documents began
        self._begun, self._changed = 0, False
        self._free = list(range(max(count, most), 0, -1))

    def begin(self, slots: Sequence[int]) -> None:
        """Begin a document in each of these slots, without a page."""
        self.end(slots)
        self._turns[list(slots)] = self._begun + np.arange(len(slots))
        self._begun += len(slots)

    def end(self, slots: Sequence[int]) -> None:
        """Take back the pages of slots whose documents have ended."""
        for slot in slots:
            self._free += self.table[slot, : self._held[slot]].tolist()
            self._changed = self._changed or bool(self._held[slot])
        self.table[list(slots)] = self._held[list(slots)] = 0
        self._turns[list(slots)] = _NEVER

    def reach(self, wanted: Integers) -> bool:
        """Give slots more pages, as far as pages are free, the oldest documents first.

        Args:
            wanted: int64 [slots], how many pages each slot should have in all.

        Returns:
            True if the table has changed since the previous call.
        """
        most = self.table.shape[1]
        wanted = np.where(self._turns < _NEVER, wanted, 0)
        short = np.flatnonzero(wanted > self._held)
        first = int(self._turns.argmin())
        for slot in short[self._turns[short].argsort()].tolist():
            room = len(self._free) - (0 if slot == first else most - self._held[first])
            if room <= 0:
                break
            held = self._held[slot]
            pages = [self._free.pop() for _ in range(min(wanted[slot] - held, room))]
            self.table[slot, held : held + len(pages)] = pages
            self._held[slot] += len(pages)
            self._changed = True
        changed, self._changed = self._changed, False
        return changed

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, and renumber them in this order."""
        self.end(sorted(set(range(len(self._held))) - set(slots)))
        index = list(slots)
        self.table, self._held, self._turns = self.table[index], self._held[index], self._turns[index]
