"""The inner loops of the processor's products: 4 rows of 16-bit integers times a block of 16 columns, or 2 times 64.

Numba writes a loop over one dot product, which a processor spends on loading and on adding up lanes. Here every lane of
a vector is a column and adds up products of pairs, which LLVM turns into the instruction that processors have for it
(pmaddwd, vpdpwssd): four times as fast. The vectors are LLVM's, for which every processor has some code.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import pointer_add, unpack_tuple
from numba.extending import intrinsic
from numpy.typing import NDArray

ROWS, COLUMNS = 4, 16
WIDE = 64  # columns where rows are two: as many sums are under way, and none is of a row that only fills a tile

_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_INT32, COLUMNS)
_PAIRS = ir.VectorType(_INT16, 2 * COLUMNS)
_PRODUCTS = ir.VectorType(_INT32, 2 * COLUMNS)


def blocks(matrices: NDArray[np.integer]) -> NDArray[np.int16]:
    """Matrices [..., R, K] as `multiply` reads them: int16 [..., ceil(R / COLUMNS), ceil(K / 2), COLUMNS, 2]."""
    *layers, rows, width = matrices.shape
    padded = np.zeros((*layers, -(-rows // COLUMNS) * COLUMNS, width + width % 2), np.int16)
    padded[..., :rows, :width] = matrices
    return np.ascontiguousarray(padded.reshape(*layers, -1, COLUMNS, (width + 1) // 2, 2).swapaxes(-3, -2))


def _constant(*values: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, len(values)), values)


def _product(rows: int, count: int, sum_bits: int = 32) -> Any:
    """An intrinsic (x, block, sums) for `rows` rows of x and `count` times COLUMNS columns; 64 bits are added to."""
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
"""multiply(rows, block, sums), called in kernels, makes `sums` the product of `rows` and `block`.

They are int16 [ROWS, K or more], int16 [K / 2, COLUMNS, 2] and int32 [ROWS, COLUMNS]; rows and sums may be parts of
longer rows, all else is contiguous. Sums wrap at 32 bits.
"""

multiply_wide: Any = _product(2, WIDE // COLUMNS)
"""`multiply` of two rows with WIDE columns, int16 [K / 2, WIDE, 2]: int32 [2, WIDE]."""

multiply_add: Any = _product(ROWS, 1, 64)
"""`multiply` whose sums of 32 bits are added to `sums`, int64 [ROWS, COLUMNS]."""
