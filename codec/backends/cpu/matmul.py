"""Multiply rows of 16-bit integers with matrices: up to 6 rows times a block of 16 columns, or 3 rows times 64 columns.

Numba compiles a dot product to a loop that spends its time on loads and on sums across a vector's lanes. Here each lane
of a vector is a column of the matrix, and adds up products of pairs. LLVM compiles such a sum to one instruction
(pmaddwd, vpdpwssd), which is four times as fast. The vectors are LLVM's own, so the code compiles for every processor.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import pointer_add, unpack_tuple
from numba.extending import intrinsic

from codec.backends.cpu.elementwise import snap
from codec.compiled import kernel

ROWS, COLUMNS = 4, 16
WIDE = 64  # columns of a block of keys
_AT_ONCE = 2  # blocks of COLUMNS columns that are summed together: of three rows, 12 of the 16 registers of AVX2

_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_INT32, COLUMNS)
_PAIRS = ir.VectorType(_INT16, 2 * COLUMNS)
_PRODUCTS = ir.VectorType(_INT32, 2 * COLUMNS)


def block_shape(rows: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape of a matrix [rows, width] that is arranged for `multiply`."""
    return -(-rows // COLUMNS), -(-width // 2), COLUMNS, 2


@kernel
def fill_blocks(matrix, out):
    """Arrange a matrix, int32 [R, K], for `multiply`: int16 of its `block_shape`, zeros where the matrix ends."""
    for r in range(matrix.shape[0]):
        block, row = out[r // COLUMNS], r % COLUMNS
        for t in range(matrix.shape[1]):
            block[t // 2, row, t % 2] = matrix[r, t]


def _constant(*values: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, len(values)), values)


def _prefetch(builder: ir.IRBuilder, place: ir.Value) -> None:
    """Ask for the cache line of a block behind this one, so that memory is read while products are computed.

    A processor fetches ahead by itself only where reading goes on; here the next rows take the same block again. Eight
    rows times the matrices of a model of 134.5 million weights took 32 ms where 56 were taken without.
    """
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    read, second_level, data = _INT32(0), _INT32(2), _INT32(1)
    builder.call(fetch, [builder.bitcast(place, byte), read, second_level, data])


def _product(rows: int, count: int, sum_bits: int = 32) -> Any:
    """Build an intrinsic (x, block, sums) that multiplies rows with a block of columns.

    Args:
        rows: rows of x.
        count: the block's columns, in units of COLUMNS.
        sum_bits: 32 to overwrite `sums`, or 64 to add to `sums`.
    """
    kept = ir.VectorType(ir.IntType(sum_bits), COLUMNS)

    def multiply(typing: Any, x: Any, block: Any, sums: Any) -> Any:
        return types.void(x, block, sums), generate

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, w, out = (context.make_array(t)(context, builder, a) for t, a in zip(signature.args, arguments, strict=True))

        def rows_of(array: Any, kind: ir.Type) -> list[ir.Value]:
            strides = [builder.mul(unpack_tuple(builder, array.strides)[0], _INT64(r)) for r in range(rows)]
            return [pointer_add(builder, array.data, stride, kind.as_pointer()) for stride in strides]

        x_rows, results = rows_of(x, _INT32), rows_of(out, kept)
        columns, pairs = builder.bitcast(w.data, _PAIRS.as_pointer()), unpack_tuple(builder, w.shape)[0]
        for begin in range(0, count, _AT_ONCE):
            blocks_here = range(begin, min(begin + _AT_ONCE, count))
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)

            builder.position_at_end(loop)
            pair = builder.phi(_INT64)
            pair.add_incoming(_INT64(0), before)
            totals = [[builder.phi(_SUMS) for _ in blocks_here] for _ in range(rows)]
            first = builder.mul(pair, _INT64(count))
            places = [builder.gep(columns, [builder.add(first, _INT64(c))]) for c in blocks_here]
            weights = [builder.sext(builder.load(place, align=2), _PRODUCTS) for place in places]
            if count == 1 and sum_bits == 32:
                _prefetch(builder, builder.gep(places[0], [pairs]))
            for row, of_blocks in zip(x_rows, totals, strict=True):
                both = builder.insert_element(
                    ir.Constant(_SUMS, ir.Undefined), builder.load(builder.gep(row, [pair]), align=2), _INT32(0)
                )
                spread = builder.shuffle_vector(both, both, _constant(*[0] * COLUMNS))
                factor = builder.sext(builder.bitcast(spread, _PAIRS), _PRODUCTS)
                for weight, total in zip(weights, of_blocks, strict=True):
                    products = builder.mul(factor, weight)
                    even = builder.shuffle_vector(products, products, _constant(*range(0, 2 * COLUMNS, 2)))
                    odd = builder.shuffle_vector(products, products, _constant(*range(1, 2 * COLUMNS, 2)))
                    total.add_incoming(_constant(*[0] * COLUMNS), before)
                    total.add_incoming(builder.add(total, builder.add(even, odd)), loop)
            following = builder.add(pair, _INT64(1))
            pair.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)

            builder.position_at_end(after)
            for result, of_blocks in zip(results, totals, strict=True):
                for c, total in zip(blocks_here, of_blocks, strict=True):
                    found, place = total.incomings[1][0], builder.gep(result, [_INT64(c)])
                    if sum_bits > 32:
                        found = builder.add(builder.load(place, align=8), builder.sext(found, kept))
                    builder.store(found, place, align=4)
        return context.get_dummy_value()

    return intrinsic(multiply)


multiply: Any = _product(ROWS, 1)
"""multiply(rows, block, sums): write the product of `rows` and `block` to `sums`, in a kernel.

`rows` is int16 [ROWS, K or more], `block` int16 [K / 2, COLUMNS, 2], `sums` int32 [ROWS, COLUMNS]. The first dimension
of `rows` and `sums` may have any stride; all else is contiguous. Sums wrap at 32 bits.
"""

multiply_one: Any = _product(1, 1)
"""`multiply` for one row, without three rows of zeros."""

_wide_two: Any = _product(2, WIDE // COLUMNS)
_wide_three: Any = _product(3, WIDE // COLUMNS)
_add_two: Any = _product(4, 1, 64)
_add_three: Any = _product(6, 1, 64)


@kernel
def heads_at_once(group):
    """Return how many of `group` heads with the same keys are computed together, 2 or 3: what takes fewer turns."""
    return 3 if (group + 2) // 3 < (group + 1) // 2 else 2


@kernel
def multiply_wide(rows, block, sums):
    """Write the products of 2 or 3 rows with WIDE columns, as `multiply` does.

    Args:
        rows: int16 [2 or 3, K].
        block: int16 [K / 2, WIDE, 2].
        sums: int32 [2 or 3, WIDE].
    """
    if len(rows) == 3:
        _wide_three(rows, block, sums)
    else:
        _wide_two(rows, block, sums)


@kernel
def multiply_add(rows, block, sums):
    """Add the products of 4 or 6 rows with COLUMNS columns, which `multiply` writes, to `sums`.

    Args:
        rows: int16 [4 or 6, K or more].
        block: int16 [K / 2, COLUMNS, 2].
        sums: int64 [4 or 6, COLUMNS].
    """
    if len(rows) == 6:
        _add_three(rows, block, sums)
    else:
        _add_two(rows, block, sums)


@kernel
def project(linear, layer, x, steps):
    """Multiply rows with a matrix.

    Args:
        linear: a `codec.backends.cpu.constants.Linear`.
        layer: the matrix's index in `linear`.
        x: int32 [n, K], the rows' integers.
        steps: float64 [n], the rows' steps.

    Returns:
        float64 [n, R].
    """
    n, width = x.shape
    weights, rows = linear.integers[layer], linear.rows[layer]
    if linear.has_columns[layer]:
        columns, row = linear.columns[layer], np.empty(width)
        finer_x, finer_steps = np.empty_like(x), np.empty_like(steps)
        for i in range(n):
            for t in range(width):
                row[t] = np.float64(x[i, t]) * columns[t]
            finer_steps[i] = steps[i] * snap(row, finer_x[i])
        x, steps = finer_x, finer_steps
    bits, count = linear.digit_bits[layer], linear.digit_count[layer]
    base, digits = math.ldexp(1.0, bits), split_digits(x, bits, count)
    out, products, total = np.empty((n, len(rows))), np.empty((count, ROWS, COLUMNS), np.int32), np.empty(COLUMNS)
    for b in range(len(weights)):
        first = b * COLUMNS
        scales = rows[first : first + COLUMNS]
        for i in range(0, n, ROWS):
            for k in range(count):
                if n - i > 1:
                    multiply(digits[k, i:], weights[b], products[k])
                else:
                    multiply_one(digits[k, i:], weights[b], products[k])
            for a in range(min(ROWS, n - i)):
                for r in range(COLUMNS):
                    total[r] = products[0, a, r]
                for k in range(1, count):
                    for r in range(COLUMNS):
                        total[r] = total[r] * base + products[k, a, r]
                for r in range(len(scales)):
                    out[i + a, first + r] = total[r] * scales[r] * steps[i + a]
    return out


@kernel
def split_digits(x, bits, count):
    """Split integers into signed digits in base 2^bits, the highest digit first.

    In that order, a sum over the digits is never larger than the final sum. The highest digit is the rest of x; the
    other digits are from -2^(bits-1) to 2^(bits-1).

    Args:
        x: int32 [n, K].
        bits: the width of a digit.
        count: how many digits there are.

    Returns:
        int16 [count, rows, width]: n and K rounded up to whole tiles, with zeros.
    """
    n, width = x.shape
    out, half = np.zeros((count, -(-n // ROWS) * ROWS, width + width % 2), np.int16), 1 << (bits - 1)
    for k in range(count):
        shift = bits * (count - 1 - k)
        rounding = half * (
            ((1 << shift) - 1) // ((1 << bits) - 1)
        )  # the effect of rounding off the lower digits one by one
        for i in range(n):
            for t in range(width):
                rest = np.int32(x[i, t] + rounding) >> shift
                out[k, i, t] = rest - (((rest + half) >> bits) << bits) if k else rest
    return out
