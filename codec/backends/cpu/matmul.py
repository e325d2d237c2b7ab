"""Multiply rows of 16-bit integers with matrices: 4 rows times a block of 16 columns, or 2 rows times 64 columns.

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
from numpy.typing import NDArray

from codec.backends.cpu.elementwise import snap
from codec.compiled import kernel

ROWS, COLUMNS = 4, 16
WIDE = 64  # columns for two rows: as many sums at once as with ROWS, and no row that only fills a tile

_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_INT32, COLUMNS)
_PAIRS = ir.VectorType(_INT16, 2 * COLUMNS)
_PRODUCTS = ir.VectorType(_INT32, 2 * COLUMNS)


def blocks(matrices: NDArray[np.integer]) -> NDArray[np.int16]:
    """Arrange matrices [..., R, K] for `multiply`: int16 [..., ceil(R / COLUMNS), ceil(K / 2), COLUMNS, 2]."""
    *layers, rows, width = matrices.shape
    padded = np.zeros((*layers, -(-rows // COLUMNS) * COLUMNS, width + width % 2), np.int16)
    padded[..., :rows, :width] = matrices
    return np.ascontiguousarray(padded.reshape(*layers, -1, COLUMNS, (width + 1) // 2, 2).swapaxes(-3, -2))


def _constant(*values: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, len(values)), values)


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
        columns = builder.bitcast(w.data, _PAIRS.as_pointer())
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)

        builder.position_at_end(loop)
        pair = builder.phi(_INT64)
        pair.add_incoming(_INT64(0), before)
        totals = [[builder.phi(_SUMS) for _ in range(count)] for _ in range(rows)]
        first = builder.mul(pair, _INT64(count))
        places = [builder.gep(columns, [builder.add(first, _INT64(c))]) for c in range(count)]
        weights = [builder.sext(builder.load(place, align=2), _PRODUCTS) for place in places]
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
        builder.cbranch(builder.icmp_signed("<", following, unpack_tuple(builder, w.shape)[0]), loop, after)

        builder.position_at_end(after)
        for result, of_blocks in zip(results, totals, strict=True):
            for c, total in enumerate(of_blocks):
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

multiply_wide: Any = _product(2, WIDE // COLUMNS)
"""`multiply` for two rows and WIDE columns: the block is int16 [K / 2, WIDE, 2], the sums int32 [2, WIDE]."""

multiply_add: Any = _product(ROWS, 1, 64)
"""`multiply` that adds the sums of 32 bits to `sums`, int64 [ROWS, COLUMNS]."""


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
    out, digits = np.zeros((n, len(rows))), split_digits(x, linear.digit_bits[layer], linear.digit_count[layer])
    products = np.empty((digits.shape[1], len(weights) * COLUMNS), np.int32)
    base = math.ldexp(1.0, linear.digit_bits[layer])
    for k in range(len(digits)):
        for b in range(len(weights)):
            for i in range(0, n, ROWS):
                if n - i > 1:
                    multiply(digits[k, i:], weights[b], products[i:, b * COLUMNS :])
                else:
                    multiply_one(digits[k, i:], weights[b], products[i:, b * COLUMNS :])
        for i in range(n):
            for r in range(len(rows)):
                out[i, r] = out[i, r] * base + products[i, r]
    for i in range(n):
        for r in range(len(rows)):
            out[i, r] = out[i, r] * rows[r] * steps[i]
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
