"""Multiply weights and inputs in vectors of 32-bit integers, and load memory ahead of its use.

Sums and products are taken modulo 2^32, the same on every machine. Numba alone would compute with 64 bits, four times
as slowly.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from codec.compiled import ENABLED

LANES = 16
"""Integers of a vector; inputs are a multiple of this number."""

_INT32, _INT64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_INT32, LANES)


def _all(builder: Any, value: Any) -> Any:
    """Return a vector of equal integers; `value` is int64."""
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), builder.trunc(value, _INT32), _INT32(0))
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_VECTOR, [0] * LANES))


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _vector(builder: Any, place: Any, index: Any) -> Any:
    return builder.gep(builder.bitcast(place, _VECTOR.as_pointer()), [index])


@intrinsic
def dot(typing: Any, weights: Any, at: Any, inputs: Any, vectors: Any) -> Any:
    """Return the sum of products of int32 weights, from index `at` on, and int32 inputs, over `vectors` vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (w, start, x, count) = signature.args, arguments
        w, x = _place(context, builder, kinds[0], w, start), _place(context, builder, kinds[2], x, _INT64(0))
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None))
        with cgutils.for_range(builder, count) as loop:
            pair = (builder.load(_vector(builder, part, loop.index), align=4) for part in (w, x))
            builder.store(builder.add(builder.load(total), builder.mul(*pair)), total)
        reduce = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.add.v{LANES}i32", [], ir.FunctionType(_INT32, [_VECTOR])
        )
        return builder.sext(builder.call(reduce, [builder.load(total)]), _INT64)

    return types.int64(weights, types.int64, inputs, types.int64), generate


@intrinsic
def move(typing: Any, weights: Any, at: Any, inputs: Any, vectors: Any, factor: Any) -> Any:
    """Add to each weight from index `at` on its input times the factor / 2^14, rounded, over `vectors` vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (w, start, x, count, factor) = signature.args, arguments
        w, x = _place(context, builder, kinds[0], w, start), _place(context, builder, kinds[2], x, _INT64(0))
        factors, half, shift = (_all(builder, value) for value in (factor, _INT64(1 << 13), _INT64(14)))
        with cgutils.for_range(builder, count) as loop:
            place = _vector(builder, w, loop.index)
            product = builder.mul(builder.load(_vector(builder, x, loop.index), align=4), factors)
            step = builder.ashr(builder.add(product, half), shift)
            builder.store(builder.add(builder.load(place, align=4), step), place, align=4)
        return context.get_dummy_value()

    return types.void(weights, types.int64, inputs, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Load the cache line of an element of an array while other work goes on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_place(context, builder, signature.args[0], *arguments), _POINTER)
        kind = ir.FunctionType(ir.VoidType(), [_POINTER, _INT32, _INT32, _INT32])
        fetch = builder.module.declare_intrinsic("llvm.prefetch.p0", [], kind)
        builder.call(fetch, [place, _INT32(1), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def plain_dot(weights: NDArray[np.int32], at: int, inputs: NDArray[np.int32], vectors: int) -> np.int64:
    """Return what `dot` returns, without compiled code."""
    count = vectors * LANES
    return np.int64((weights[at : at + count] * inputs[:count]).sum(dtype=np.int32))


def plain_move(weights: NDArray[np.int32], at: int, inputs: NDArray[np.int32], vectors: int, factor: int) -> None:
    """Do what `move` does, without compiled code."""
    count = vectors * LANES
    weights[at : at + count] += (inputs[:count] * np.int64(factor).astype(np.int32) + np.int32(1 << 13)) >> 14


def _ignore(array: NDArray[Any], at: int) -> None:
    """Load nothing: Python has no way to."""


if not ENABLED:
    dot, move, prefetch = plain_dot, plain_move, _ignore  # type: ignore[assignment]
