"""Turn logits into intervals and run the range decoder on a GPU.

The Triton kernels compute `codec.entropy.frequencies` and `codec.entropy.range_coder`. A program of a kernel has one
row of products, visits the vocabulary in blocks, and rewrites the products as levels in place. With a match model, the
program then raises levels (`codec.exact.recall`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from codec.backends.cuda.kernels.elementwise import exponent, launch, round_int, to_double
from codec.backends.cuda.recall import NEVER, Measures
from codec.exact import recall
from codec.exact.families.weights import LEVELS_PER_NAT
from codec.model.config import AnyConfig
from codec.numerics import tables
from codec.numerics.widths import LARGEST_LEVEL, PRODUCT_BITS, total_bits

_LEVEL_BITS = tl.constexpr(tables.LEVELS_PER_BIT.bit_length() - 1)
_LEVEL_MASK = tl.constexpr(tables.LEVELS_PER_BIT - 1)
_GRID = tl.constexpr(float(tables.LOGIT_GRID))
_FRACTION_BITS = tl.constexpr(tables.FRACTION_BITS)
_PRODUCT_BITS = tl.constexpr(PRODUCT_BITS)
_LEVELS_PER_NAT = tl.constexpr(LEVELS_PER_NAT)
_LARGEST = tl.constexpr(float(LARGEST_LEVEL))
_FARTHEST = tl.constexpr(tables.EXP2_LENGTH - 1)
_BOTTOM = tl.constexpr(1 << 48)
_LOWEST = tl.constexpr(-(1 << 30))
_NEVER = tl.constexpr(NEVER)
_SURPRISALS = tl.constexpr(recall.SURPRISALS)
_COLUMNS = tl.constexpr(len(recall.SURPRISALS) + 1)
_REST_BITS = tl.constexpr(recall.REST_BITS)
_REST = tl.constexpr((1 << recall.REST_BITS) - 1)
_SECOND = tl.constexpr(recall.SHAPES["patterns"][0])
_THIRD = tl.constexpr(recall.SHAPES["patterns"][0] + recall.SHAPES["rest"][0])
_STEPS = tl.constexpr(recall.STEPS)

_BLOCK = 1024


@triton.jit
def exp2(below, fractions, SHIFT: tl.constexpr, OCTAVES: tl.constexpr):
    """Compute entry `below` >= 0 (int32) of `codec.numerics.tables.exp2_table`, int64.

    fractions: `codec.numerics.tables.octave`.
    """
    octave = below >> _LEVEL_BITS
    fraction = tl.load(fractions + (below & _LEVEL_MASK))
    shift = (tl.minimum(octave, OCTAVES) + SHIFT).to(tl.int64)
    one = tl.full(below.shape, 1, tl.int64)
    return tl.where(octave < OCTAVES, (fraction + (one << (shift - 1))) >> shift, 0)


@triton.jit
def _make_levels(
    row, y_rows, y_bias, step, softcap, last, vocabulary, CAP: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rewrite a row of products as levels (`ExactNetwork.levels`), and return the greatest."""
    largest = tl.full((BLOCK,), _LOWEST, tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < vocabulary
        product = tl.load(row + at, mask=inside, other=0)
        logit = to_double(product) * tl.load(y_rows + at, mask=inside, other=0.0) * step
        if BIAS:
            logit += tl.load(y_bias + at, mask=inside, other=0.0)
        if CAP:
            index = round_int(tl.minimum(tl.abs(logit) * _GRID, last))
            capped = tl.load(softcap + index)
            level = tl.where(logit < 0, -capped, capped)
        else:
            level = round_int(tl.minimum(tl.maximum(logit * _LEVELS_PER_NAT, -_LARGEST), _LARGEST))
        tl.store(row + at, level.to(product.dtype), mask=inside)
        largest = tl.maximum(largest, tl.where(inside, level, _LOWEST))
    tl.debug_barrier()
    return tl.max(largest, 0)


@triton.jit
def _weights(row, begin, top, fractions, vocabulary, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute (symbols, weights) of a block of levels; weights are int64, and 0 beyond the vocabulary."""
    at = begin + tl.arange(0, BLOCK)
    inside = at < vocabulary
    below = tl.minimum(top - tl.load(row + at, mask=inside, other=0).to(tl.int32), _FARTHEST)
    weights = exp2(tl.maximum(below, 0), fractions, _FRACTION_BITS - BITS, 62 - _FRACTION_BITS + BITS)
    return at, tl.where(inside, weights, 0)


@triton.jit
def _dropped(z, BITS: tl.constexpr):
    """Return how many low bits of a sum of weights z cumulative frequencies drop."""
    return tl.maximum(exponent(z.to(tl.float64)) - _PRODUCT_BITS + BITS, 0)


@triton.jit
def _cumulative(below, symbol, z, vocabulary, drop, BITS: tl.constexpr):
    return (below >> drop) * ((1 << BITS) - vocabulary) // (z >> drop) + symbol


@triton.jit
def _total(row, top, fractions, vocabulary, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum a row's weights."""
    sums = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, vocabulary, BLOCK):
        sums += _weights(row, begin, top, fractions, vocabulary, BITS, BLOCK)[1]
    return tl.sum(sums, 0)


@triton.jit
def _raise_levels(
    row, agreement, similarity, entries, one, top, total, fractions, vocabulary, BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Raise levels by the match model, clear the measures for the next row, and return the greatest level.

    The reference is `codec.exact.recall_memory.Memory`.
    """
    largest = tl.full((BLOCK,), _LOWEST, tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        at, weights = _weights(row, begin, top, fractions, vocabulary, BITS, BLOCK)
        inside = at < vocabulary
        mask = tl.load(agreement + at, mask=inside, other=-1)
        past = mask >= 0
        product = tl.load(similarity + at, mask=past, other=0)
        product = tl.minimum(tl.maximum(product, -one), one)  # larger products have the same rows as -one and one
        column = tl.zeros((BLOCK,), tl.int32)
        for i in tl.static_range(_COLUMNS - 1):
            column += (weights << _SURPRISALS[i] <= total).to(tl.int32)
        rest = mask & _REST
        rest = (rest & 0x5555) + ((rest >> 1) & 0x5555)  # sums of neighbouring bits, of pairs, of fours, of eights
        rest = (rest & 0x3333) + ((rest >> 2) & 0x3333)
        rest = (rest & 0x0F0F) + ((rest >> 4) & 0x0F0F)
        rest = (rest & 0x00FF) + (rest >> 8)
        steps = tl.maximum(product * _STEPS + one, 0) // one  # the floor, which is at least -1, plus one
        level = tl.load(row + at, mask=inside, other=0).to(tl.int32)
        level += tl.load(entries + (mask >> _REST_BITS) * _COLUMNS + column, mask=past, other=0)
        level += tl.load(entries + (_SECOND + rest) * _COLUMNS + column, mask=past, other=0)
        level += tl.load(entries + (_THIRD + steps) * _COLUMNS + column, mask=past, other=0)
        tl.debug_barrier()  # all threads load before any thread clears
        tl.store(row + at, level.to(row.dtype.element_ty), mask=past)
        tl.store(agreement + at, -1, mask=past)
        tl.store(similarity + at, _NEVER, mask=past)
        largest = tl.maximum(largest, tl.where(inside, level, _LOWEST))
    tl.debug_barrier()
    return tl.max(largest, 0)


@triton.jit(do_not_specialize=["count"])  # any number of rows, by one compiled kernel
def _intervals_kernel(
    products, y_rows, y_bias, steps, targets, softcap, last, fractions, agreement, similarity, entries, one, out, count,
    stride, vocabulary, RECALL: tl.constexpr, BITS: tl.constexpr, CAP: tl.constexpr, BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute (start, frequency, levels below the greatest, sum of weights) of each row's target, int64 [4, count].

    The last two numbers are those without the match model.
    """
    n = tl.program_id(0).to(tl.int64)
    row, target = products + n * stride, tl.load(targets + n)
    top = _make_levels(row, y_rows, y_bias, tl.load(steps + n), softcap, tl.load(last), vocabulary, CAP, BIAS, BLOCK)
    if RECALL:
        total = _total(row, top, fractions, vocabulary, BITS, BLOCK)
        tl.store(out + 2 * count + n, (top - tl.load(row + target).to(tl.int32)).to(tl.int64))
        tl.store(out + 3 * count + n, total)
        tl.debug_barrier()
        past = n * vocabulary
        top = _raise_levels(
            row, agreement + past, similarity + past, entries, one, top, total, fractions, vocabulary, BITS, BLOCK
        )
    sums, before = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, vocabulary, BLOCK):
        at, weights = _weights(row, begin, top, fractions, vocabulary, BITS, BLOCK)
        sums += weights
        before += tl.where(at < target, weights, 0)
    z, below = tl.sum(sums, 0), tl.sum(before, 0)
    gap = top - tl.load(row + target).to(tl.int32)
    own = tl.sum(
        exp2(
            tl.zeros((1,), tl.int32) + tl.minimum(gap, _FARTHEST),
            fractions,
            _FRACTION_BITS - BITS,
            62 - _FRACTION_BITS + BITS,
        ),
        0,
    )
    drop = _dropped(z, BITS)
    start = _cumulative(below, target, z, vocabulary, drop, BITS)
    tl.store(out + n, start)
    tl.store(out + count + n, _cumulative(below + own, target + 1, z, vocabulary, drop, BITS) - start)
    if not RECALL:
        tl.store(out + 2 * count + n, gap.to(tl.int64))
        tl.store(out + 3 * count + n, z)


@triton.jit(do_not_specialize=["count"])
def _ordered_kernel(
    products, y_rows, y_bias, steps, softcap, last, fractions, order, out, count, stride, vocabulary, symbols_count,
    BITS: tl.constexpr, CAP: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute `codec.entropy.frequencies.ordered_sums` of each row into `out`, int64 [count, symbols_count + 1]."""
    n = tl.program_id(0).to(tl.int64)
    row, found = products + n * stride, out + n * (symbols_count + 1)
    top = _make_levels(row, y_rows, y_bias, tl.load(steps + n), softcap, tl.load(last), vocabulary, CAP, BIAS, BLOCK)
    tl.store(found, tl.zeros((), tl.int64))
    carried = tl.zeros((), tl.int64)
    for begin in range(0, symbols_count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < symbols_count
        symbols = tl.load(order + at, mask=inside, other=0)
        below = tl.minimum(top - tl.load(row + symbols, mask=inside, other=0).to(tl.int32), _FARTHEST)
        powers = exp2(tl.maximum(below, 0), fractions, _FRACTION_BITS - BITS, 62 - _FRACTION_BITS + BITS)
        weights = tl.where(inside, powers + 1, 0)
        tl.store(found + at + 1, carried + tl.cumsum(weights, 0), mask=inside)
        carried += tl.sum(weights, 0)


@triton.jit
def _take_byte(code, size, read, data, end):
    """Run one round of `codec.entropy.range_coder.take`: read a byte if the range has become small."""
    short = size < _BOTTOM
    byte = tl.load(data + read, mask=short & (read < end), other=0).to(tl.int64)
    return tl.where(short, (code << 8) | byte, code), tl.where(short, size << 8, size), tl.where(short, read + 1, read)


@triton.jit(do_not_specialize=["count"])
def _decode_kernel(
    products, y_rows, y_bias, steps, softcap, last, fractions, agreement, similarity, entries, one, inputs, runs, data,
    ends, states, history, counter, count, stride, vocabulary, last_token, RECALL: tl.constexpr, BITS: tl.constexpr,
    CAP: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decode the next symbol of each decoding slot, and advance the slot's range decoder and position.

    The tensors of slots are those of `SlotState`. runs: int64 [count], 1 if the slot runs in this step. A slot stops
    after the end of a document. A stopped slot has position 0, so that attention has little to do until the next
    document is loaded.
    """
    n = tl.program_id(0).to(tl.int64)
    row = products + n * stride
    code, size, read = tl.load(states + n), tl.load(states + count + n), tl.load(states + 2 * count + n)
    unit = size >> BITS
    target = tl.minimum(code // unit, (1 << BITS) - 1)
    top = _make_levels(row, y_rows, y_bias, tl.load(steps + n), softcap, tl.load(last), vocabulary, CAP, BIAS, BLOCK)
    z = _total(row, top, fractions, vocabulary, BITS, BLOCK)
    if RECALL:
        past = n * vocabulary
        top = _raise_levels(
            row, agreement + past, similarity + past, entries, one, top, z, fractions, vocabulary, BITS, BLOCK
        )
        z = _total(row, top, fractions, vocabulary, BITS, BLOCK)
    drop = _dropped(z, BITS)
    symbols, starts = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    ends_after = tl.full((BLOCK,), 1 << BITS, tl.int64)
    carried = tl.zeros((), tl.int64)
    for begin in range(0, vocabulary, BLOCK):
        at, weights = _weights(row, begin, top, fractions, vocabulary, BITS, BLOCK)
        end = _cumulative(carried + tl.cumsum(weights, 0), at.to(tl.int64) + 1, z, vocabulary, drop, BITS)
        inside = at < vocabulary
        passed = inside & (end <= target)
        symbols += passed.to(tl.int64)
        starts = tl.maximum(starts, tl.where(passed, end, 0))
        ends_after = tl.minimum(ends_after, tl.where(inside & (end > target), end, 1 << BITS))
        carried += tl.sum(weights, 0)
    symbol, start = tl.sum(symbols, 0), tl.max(starts, 0)
    frequency = tl.min(ends_after, 0) - start

    active = tl.load(runs + n) != 0
    size, end = unit * frequency, tl.load(ends + n)
    code = tl.minimum(code - unit * start, size)  # see `codec.entropy.range_coder.after_take`
    code, size, read = _take_byte(code, size, read, data, end)
    code, size, read = _take_byte(code, size, read, data, end)
    code, size, read = _take_byte(code, size, read, data, end)
    code, size, read = _take_byte(code, size, read, data, end)
    tl.store(states + n, code, mask=active)
    tl.store(states + count + n, size, mask=active)
    tl.store(states + 2 * count + n, read, mask=active)
    tl.store(history + tl.load(counter) * count + n, tl.where(active, symbol, -1))
    token, position = tl.load(inputs + n), tl.load(inputs + 2 * count + n)
    tl.store(inputs + count + n, token, mask=active)
    tl.store(inputs + n, symbol, mask=active)
    tl.store(inputs + 2 * count + n, tl.where(symbol == last_token, 0, position + 1), mask=active)
    tl.store(inputs + 3 * count + n, (symbol != last_token).to(tl.int64), mask=active)


class SlotState(NamedTuple):
    """The tensors of decoding slots that a step of `Head.decode` reads and changes."""

    inputs: Tensor  # int64 [4, n]: token, the token before, position, and 1 until the slot stops
    states: Tensor  # int64 [3, n], range decoders: code - low, range, and the index in `data` of the next byte
    data: Tensor  # uint8, the payloads of all documents
    ends: Tensor  # int64 [n], where the payload of each slot ends in `data`
    history: Tensor  # int64 [steps, n]: a step writes the tokens to row `counter`, -1 for idle slots
    counter: Tensor  # int64 [1]


class Head:
    """The tables of a model's head on its device.

    Args:
        config: the model's shape.
        rows: float64 [V], the steps of the head's matrix.
        softcap: `codec.numerics.tables.softcap_table` of the model, on the device; None without a softcap.
        bias: float64 [V], added to products; None without one.
    """

    def __init__(self, config: AnyConfig, rows: Tensor, softcap: Tensor | None = None, bias: Tensor | None = None):
        self._config, self._rows, device = config, rows, rows.device
        self._fractions = torch.from_numpy(tables.octave()).to(device)
        self._softcap = rows if softcap is None else softcap.to(torch.int32)  # what no kernel reads
        self._last = torch.full((1,), float(len(self._softcap) - 1), dtype=torch.float64, device=device)
        self._bias = rows if bias is None else bias
        self._settings = {
            "CAP": softcap is not None,
            "BIAS": bias is not None,
            "BITS": total_bits(config.vocab_size),
            "BLOCK": _BLOCK,
            "num_warps": 4,
        }

    def intervals(
        self, products: Tensor, steps: Tensor, targets: Tensor, measures: Measures | None = None
    ) -> tuple[Tensor, ...]:
        """Compute `codec.entropy.frequencies.intervals` of rows of logits: products times row steps and steps.

        Args:
            products: integers [N, V, padded], overwritten.
            rows: float64 [V], the row steps of the head's matrix.
            steps: float64 [N], the steps of the head's operand.
            targets: int64 [N], the symbols.
            measures: measures of the match model, which raise levels and are then cleared; or None.

        Returns:
            start, frequency and bits, [N] each. The bits are those without the match model.
        """
        count = len(targets)
        out = torch.empty(4, count, dtype=torch.int64, device=products.device)
        launch(
            _intervals_kernel, (count,), products, self._rows, self._bias, steps, targets, self._softcap, self._last,
            self._fractions, *(measures or (out, out, out, 1)), out, count, products.shape[1], self._config.vocab_size,
            RECALL=measures is not None, **self._settings,
        )  # fmt: skip
        start, frequency, below, z = out
        bits = below.double() / tables.LEVELS_PER_BIT + z.double().log2() - total_bits(self._config.vocab_size)
        return start, frequency, bits

    def ordered_sums(self, products: Tensor, steps: Tensor, order: Tensor, out: Tensor) -> None:
        """Compute `codec.entropy.frequencies.ordered_sums` into `out`; products and steps as of `intervals`."""
        launch(
            _ordered_kernel, (len(out),), products, self._rows, self._bias, steps, self._softcap, self._last,
            self._fractions, order, out, len(out), products.shape[1], self._config.vocab_size, len(order),
            **self._settings,
        )  # fmt: skip

    def decode(
        self, products: Tensor, steps: Tensor, slots: SlotState, runs: Tensor, measures: Measures | None = None
    ) -> None:
        """Decode a token in every slot; products, steps and measures as of `intervals`.

        Args:
            products: integers [n, V, padded], overwritten.
            steps: float64 [n].
            slots: of which all but `data` and `ends` change.
            runs: int64 [n], 1 if the slot runs in this step.
            measures: measures of the match model, or None.
        """
        count, inputs = slots.inputs.shape[1], slots.inputs
        launch(
            _decode_kernel, (count,), products, self._rows, self._bias, steps, self._softcap, self._last,
            self._fractions, *(measures or (inputs, inputs, inputs, 1)), inputs, runs, slots.data, slots.ends,
            slots.states, slots.history, slots.counter, count, products.shape[1], self._config.vocab_size,
            self._config.end, RECALL=measures is not None, **self._settings,
        )  # fmt: skip
