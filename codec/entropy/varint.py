"""Write and read integers of seven bits a byte, the lowest first (LEB128), one by one and in arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codec.errors import FormatError

_MOST_BYTES = 9
"""The most bytes of a varint: 63 bits, what an int64 holds."""

_BLOCK = 1 << 16
"""Integers of an array that are written or read together: the index of millions of documents is no table of columns."""


def varint(value: int) -> bytes:
    """Write one integer of 0 to 2^63 - 1.

    >>> varint(300)
    b'\\xac\\x02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: ArrayLike) -> bytes:
    """Write integers int64 [N], one behind the other, as `varint` does.

    >>> varints([1, 300]) == varint(1) + varint(300)
    True
    """
    left = np.asarray(values, np.int64).reshape(-1)
    if len(left) < 16:
        return b"".join(map(varint, left.tolist()))
    if len(left) > _BLOCK:
        return b"".join(varints(left[at : at + _BLOCK]) for at in range(0, len(left), _BLOCK))
    columns = []
    more = np.ones(len(left), np.bool_)
    while more.any():
        there, more = more, left > 127
        columns.append((np.where(more, left & 127 | 128, left & 127), there))
        left, more = left >> 7, more & there
    table = np.stack([values for values, _ in columns], 1).astype(np.uint8)
    return table[np.stack([there for _, there in columns], 1)].tobytes()


class Fields:
    """Fields of a record in memory, read from the front.

    Args:
        data: the record.
        what: what errors call the record.
    """

    def __init__(self, data: bytes, what: str):
        self._data, self._at, self._what = data, 0, what

    @property
    def left(self) -> int:
        """Return the number of bytes that have not been read."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Read `count` bytes. Raises FormatError where there are fewer."""
        if count > self.left:
            raise FormatError(f"{self._what}: {self.left} bytes left, expected {count}; the file is damaged")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        """Read one varint. Raises FormatError for one of over 63 bits or without an end."""
        value = 0
        for shift in range(0, 7 * _MOST_BYTES, 7):
            if self._at == len(self._data):
                raise FormatError(f"{self._what}: 0 bytes left, expected 1; the file is damaged")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FormatError(f"{self._what}: a number of over 63 bits; the file is damaged")

    def count(self, most: int, what: str) -> int:
        """Read how many of something follow. Raises FormatError for more than `most`, which the file can hold."""
        if (value := self.number()) > most:
            raise FormatError(f"{self._what}: {value} {what}, expected at most {most}; the file is damaged")
        return value

    def array(self, count: int) -> NDArray[np.int64]:
        """Read `count` varints, int64 [count]. Raises FormatError where there are fewer."""
        if count < 16:
            return np.array([self.number() for _ in range(count)], np.int64)
        if count > _BLOCK:
            return np.concatenate([self.array(min(_BLOCK, count - at)) for at in range(0, count, _BLOCK)])
        data = np.frombuffer(self._data, np.uint8, offset=self._at)[: count * _MOST_BYTES]
        ends = np.flatnonzero(data < 128)[:count]
        if len(ends) < count:
            raise FormatError(f"{self._what}: {len(ends)} numbers, expected {count}; the file is damaged")
        begins = np.concatenate(([0], ends[:-1] + 1))
        if (ends - begins >= _MOST_BYTES).any():
            raise FormatError(f"{self._what}: a number of over 63 bits; the file is damaged")
        used = data[: ends[-1] + 1].astype(np.int64)
        places = np.arange(len(used)) - np.repeat(begins, ends - begins + 1)
        self._at += len(used)
        return np.add.reduceat((used & 127) << (7 * places), begins)

    def end(self) -> None:
        """Check that no bytes are left. Raises FormatError otherwise."""
        if self.left:
            raise FormatError(f"{self._what}: {self.left} bytes too many; the file is damaged")
