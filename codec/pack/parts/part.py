"""Read and write parts: a slab of a tensor, or a batch of small tensors, as bytes readable without any other part.

A part is a tag, the content that the tag calls for, and the CRC-32 of both.
"""

import struct
import zlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.pack.parts import context_coder
from codec.pack.parts.planes import decode_planes, encode_planes
from codec.quantization.quantized import MOST_TUNING, OnTrellis, Quantized, StepGrid, Tuning
from codec.quantization.quantizers import step_exponent
from codec.quantization.trellis import CODES


class PartTag(IntEnum):
    """The kinds of parts."""

    EXACT = 0  # bytes as they are
    BY_ROW = 1  # integers with a float16 step for each row
    BY_GRID = 2  # integers with steps by row and column
    BY_TUNED_GRID = 3  # the same with tunings of the steps


EXACT, BY_ROW, BY_GRID, BY_TUNED_GRID = PartTag

OFF = np.uint16(512)
"""A summand to the exponent of the step of a row or column off the trellis; exponents are smaller. Of tunings, the word
that stands for none."""

_ROW_HEAD = struct.Struct("<hHB")  # exponent, states, typical
_GRID_HEAD = struct.Struct("<fhhHB")  # unit, least exponents of rows and columns, states, typical
_CRC = struct.Struct("<I")


def exact_part(data: NDArray[np.uint8], width: int, floating: bool) -> bytes:
    """Return the part of bytes that are restored exactly (`codec.pack.parts.planes`)."""
    return _sealed(bytes([EXACT]) + encode_planes(data, width, floating))


def quantized_part(matrix: Quantized) -> bytes:
    """Return the part of a quantized matrix.

    Raises:
        FormatError: an integer is too large, or the steps are not finite or too far apart.
    """
    columns = np.ones(1) if matrix.columns is None else matrix.columns
    if not (np.isfinite(matrix.rows).all() and np.isfinite(columns).all()):
        raise FormatError("steps are not finite; use finer steps")
    typical = context_coder.typical_of(matrix)
    if matrix.grid is None:
        exponent = step_exponent(matrix.rows)
        words = np.ldexp(matrix.rows, -exponent).astype(np.float16).view(np.uint16)
        head = bytes([BY_ROW]) + _ROW_HEAD.pack(exponent, matrix.states, typical)
        return _sealed(head + context_coder.encode_matrix(matrix, [words], len(words), typical))
    grid = matrix.grid
    least = [int(exponents.min(initial=1 << 14)) if exponents.size else 0 for exponents in (grid.rows, grid.columns)]
    exponents = np.concatenate((grid.rows - least[0], grid.columns - least[1]))
    if exponents.max(initial=0) >= OFF:
        raise FormatError(f"steps {exponents.max()} quarter octaves apart, expected less than {OFF}")
    lists = [exponents.astype(np.uint16)]
    if matrix.on:
        lists[0] += OFF * ~np.concatenate(matrix.on)
    if grid.tuning:
        lists.append((np.concatenate(grid.tuning) + OFF).astype(np.uint16))
    tag = BY_TUNED_GRID if grid.tuning else BY_GRID
    head = bytes([tag]) + _GRID_HEAD.pack(np.float32(grid.unit), *least, matrix.states, typical)
    return _sealed(head + context_coder.encode_matrix(matrix, lists, len(grid.rows), typical))


def read_part(part: bytes) -> tuple[int, bytes]:
    """Return the tag and the content of a part.

    Raises:
        FormatError: the CRC-32 is wrong, or the tag is unknown.
    """
    if len(part) < 1 + _CRC.size or zlib.crc32(part[: -_CRC.size]) != _CRC.unpack_from(part, len(part) - _CRC.size)[0]:
        raise FormatError(f"CRC-32 of a part of {len(part)} bytes is wrong; fetch the file again")
    if part[0] > BY_TUNED_GRID:
        raise FormatError(f"a part begins with {part[0]}, expected 0 to 3; the file was not written by underpar")
    return part[0], part[1 : -_CRC.size]


def decode_exact(content: bytes, size: int, width: int, floating: bool) -> NDArray[np.uint8]:
    """Return the bytes of a part tagged EXACT. Raises FormatError as `decode_planes` does."""
    return decode_planes(content, size, width, floating)


def decode_quantized(tag: int, content: bytes, rows: int, columns: int) -> Quantized:
    """Return the matrix [rows, columns] of a part tagged BY_ROW, BY_GRID or BY_TUNED_GRID.

    Raises:
        FormatError: the head, the steps or the integers are none that underpar writes.
    """
    head = _ROW_HEAD if tag == BY_ROW else _GRID_HEAD
    if len(content) < head.size:
        raise FormatError(f"a part's head of {len(content)} bytes, expected {head.size}; the file is damaged")
    *steps, states, typical = head.unpack_from(content)
    if (states and states not in CODES) or typical >= 1 << 7:
        raise FormatError(f"trellis of {states} states, typical {typical}; the file was not written by underpar")
    decoder = context_coder.Decoder(content[head.size :])
    empty = np.zeros((rows, columns), np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        if tag == BY_ROW:
            halves = decoder.words(rows, rows).view(np.float16).astype(np.float32)
            matrix = Quantized(empty, np.ldexp(halves, max(-200, min(200, steps[0]))), None, states)
        else:
            words = decoder.words(rows + columns, rows)
            exponents, on = (words % OFF).astype(np.int32), words < OFF
            tuning = _tuning(decoder.words(rows + columns, rows), rows) if tag == BY_TUNED_GRID else None
            grid = StepGrid(steps[0], exponents[:rows] + steps[1], exponents[rows:] + steps[2], tuning)
            visited = OnTrellis(on[:rows], on[rows:]) if states else None
            matrix = Quantized(empty, grid.row_steps(), grid.column_steps(), states, grid, visited)
    if not (np.isfinite(matrix.rows).all() and (matrix.columns is None or np.isfinite(matrix.columns).all())):
        raise FormatError("steps are not finite; the file was not written by underpar")
    decoder.integers(matrix, typical)
    return matrix


def _tuning(words: NDArray[np.uint16], rows: int) -> Tuning:
    """Return the tunings of words [R + C]. Raises FormatError for one that is out of range."""
    found = words.astype(np.int32) - int(OFF)
    if np.abs(found).max(initial=0) > MOST_TUNING:
        raise FormatError(f"tunings beyond {MOST_TUNING}; the file was not written by underpar")
    return Tuning(found[:rows], found[rows:])


def _sealed(content: bytes) -> bytes:
    return content + _CRC.pack(zlib.crc32(content))
