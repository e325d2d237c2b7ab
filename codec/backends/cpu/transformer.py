"""Run the networks of the open families on a processor: `codec.exact.families` in compiled loops.

Arrays, caches and products are those of `codec.backends.cpu.network`; a document begins anew behind each window.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.backends.cpu.attention import softmax, weighted_sum
from codec.backends.cpu.backend import Cache, CpuNetwork, Hidden, Integers
from codec.backends.cpu.constants import Linear, linear, sigmoid
from codec.backends.cpu.elementwise import reciprocal_sqrt, rotations
from codec.backends.cpu.head import plain_levels
from codec.backends.cpu.matmul import COLUMNS, WIDE, heads_at_once, multiply_wide, project
from codec.compiled import kernel
from codec.errors import UnsupportedError
from codec.exact.families import weights as constants
from codec.exact.families.weights import GELU_CUBE, GELU_LINE, NORM_BITS, Biased, TransformerWeights
from codec.exact.recall import Recall
from codec.numerics.tables import SIGMOID_GRID
from codec.numerics.widths import LARGEST_SCORE, SNAP_BITS
from codec.quantization.quantized import Quantized

_LIMIT = float(1 << (SNAP_BITS - 1))
_MAGNITUDE = (1 << 63) - 1  # the bits of a float64 without its sign


class Matrix(NamedTuple):
    """The same matrix of every layer, and what is added to its products."""

    linear: Linear
    bias: NDArray[np.float64]  # [layers, R]


class Network(NamedTuple):
    """The constants of a model; `codec.exact.families.weights` says what they are."""

    query: Matrix
    key: Matrix
    value: Matrix
    attention_out: Matrix
    up: Matrix
    down: Matrix
    query_gain: NDArray[np.float64]  # [layers, head_dim]
    key_gain: NDArray[np.float64]  # [layers, head_dim]
    head_norm: bool  # whether heads of queries and keys are normalised
    key_scale: NDArray[np.float64]  # [layers, kv_heads, head_dim]
    value_scale: NDArray[np.float64]  # [layers, kv_heads]
    query_bits: int
    score_unit: float
    epsilon: float
    layer_norm: bool
    gated: bool  # SwiGLU, else GELU
    rotary: bool
    turns: NDArray[np.int64]  # [2, rows, head_dim / 2]
    sigmoid: NDArray[np.float64]


def _matrix(layers: Sequence[Biased]) -> Matrix:
    bias = [np.zeros(len(m.matrix.rows)) if m.bias is None else m.bias for m in layers]
    return Matrix(linear({m.name: m.matrix for m in layers}), np.stack(bias))


def network(weights: TransformerWeights) -> Network:
    """Make the constants of a model.

    Raises:
        UnsupportedError: integers have more than 16 bits.
    """
    c = weights.config
    layers = [constants.layer(weights, i) for i in range(c.num_layers)]
    turns, ones = constants.turns(c), np.ones(c.head_dim)
    return Network(
        query=_matrix([layer.query for layer in layers]),
        key=_matrix([layer.key for layer in layers]),
        value=_matrix([layer.value for layer in layers]),
        attention_out=_matrix([layer.attention_out for layer in layers]),
        up=_matrix([layer.up for layer in layers]),
        down=_matrix([layer.down for layer in layers]),
        query_gain=np.stack([ones if layer.query_gain is None else layer.query_gain for layer in layers]),
        key_gain=np.stack([ones if layer.key_gain is None else layer.key_gain for layer in layers]),
        head_norm=c.qk_norm,
        key_scale=np.stack([layer.key_scale for layer in layers]),
        value_scale=np.stack([layer.value_scale for layer in layers]),
        query_bits=constants.query_bits(c.head_dim),
        score_unit=constants.score_unit(c),
        epsilon=c.norm_epsilon,
        layer_norm=c.norm == "layer",
        gated=c.activation == "swiglu",
        rotary=turns is not None,
        turns=np.zeros((2, 1024, 0), np.int64) if turns is None else turns,
        sigmoid=sigmoid(),
    )


class Table:
    """Look up the rows of an embedding, as `codec.exact.linear.ExactTable` has them."""

    def __init__(self, weights: Quantized):
        if weights.largest >= 1 << 15:
            raise UnsupportedError("integers of more than 16 bits")
        self._symbols = weights.symbols.astype(np.int16)
        self._rows = weights.rows.astype(np.float64)
        self._columns = None if weights.columns is None else weights.columns.astype(np.float64)

    def __call__(self, numbers: Integers) -> NDArray[np.float64]:
        """Return the rows float64 [n, C] with the numbers int64 [n]."""
        x = self._symbols[numbers].astype(np.float64) * self._rows[numbers][:, None]
        return x if self._columns is None else x * self._columns


class CpuTransformer(CpuNetwork):
    """Run a model of an open family on a processor, as a `codec.exact.backend.Backend`.

    Raises:
        UnsupportedError: functions are not compiled, or integers have more than 16 bits. No quantizer of this package
            makes such integers.
    """

    def __init__(self, weights: TransformerWeights, recall: Recall | None = None):
        super().__init__(weights.config, recall)
        constants.check(weights)
        self._network, self._head = network(weights), _matrix([constants.head(weights)])
        learned = weights.config.positions == "learned"
        self._tokens = Table(weights.matrices["tok_emb.weight"])
        self._places = Table(weights.matrices["pos_emb.weight"]) if learned else None

    def levels(self, hidden: NDArray[np.int32], steps: NDArray[np.float64]) -> NDArray[np.int32]:
        """See `CpuNetwork`."""
        return plain_levels(project(self._head.linear, 0, hidden, steps), self._head.bias[0])

    def run(self, rows: Integers, cache: Cache) -> Hidden:
        """See `CpuNetwork`."""
        places, x = rows[2] % cache.window, self._tokens(rows[0])
        if self._places is not None:
            x = x + self._places(places)
        return run(self._network, x, rows[2], places, rows[3], *cache)


@kernel
def _snap(x, out, bits):
    """Compute `codec.numerics.fixed_point.snap` of one row: fill in `out`, and return the step."""
    largest = np.int64(0)
    for word in x.view(np.int64):
        magnitude = word & _MAGNITUDE
        largest = magnitude if magnitude > largest else largest
    exponent = min(max(int(largest >> 52) - 1022, -64), 960)
    scale = math.ldexp(1.0, bits - 1 - exponent)
    for i in range(len(x)):
        out[i] = np.int32(np.rint(x[i] * scale))
    return math.ldexp(1.0, exponent - bits + 1)


@kernel
def _norm(x, layer_norm, epsilon):
    """Return snapped rows int32 [n, dim] of x [n, dim], and the steps [n] that normalise them."""
    n, width = x.shape
    out, steps, centred = np.empty(x.shape, np.int32), np.empty(n), np.empty(width)
    inverse = 1.0 / width
    for i in range(n):
        step = _snap(x[i], out[i], NORM_BITS)
        if layer_norm:
            total = np.int64(0)
            for value in out[i]:
                total += np.int64(value)
            for t in range(width):
                centred[t] = np.float64(np.int64(out[i, t]) * width - total)
            step = step * _snap(centred, out[i], NORM_BITS) * inverse
        squares = np.int64(0)
        for value in out[i]:
            squares += np.int64(value) * np.int64(value)
        mean = np.float64(squares) * step * step * inverse + epsilon
        steps[i] = step * reciprocal_sqrt(mean)
    return out, steps


@kernel
def _product(matrix, layer, x, steps):
    """Compute the product [n, R] of the rows x * steps with a matrix, plus its bias."""
    out, bias = project(matrix.linear, layer, x, steps), matrix.bias[layer]
    for i in range(out.shape[0]):
        for r in range(out.shape[1]):
            out[i, r] += bias[r]
    return out


@kernel
def _turn(x, gain, cos, sin, network, snapped):
    """Normalise, where the model does, and rotate one head x [head_dim] in place."""
    if network.head_norm:
        step, squares = _snap(x, snapped, SNAP_BITS), np.int64(0)
        for value in snapped:
            squares += np.int64(value) * np.int64(value)
        mean = np.float64(squares) * step * step * (1.0 / len(x)) + network.epsilon
        step = step * reciprocal_sqrt(mean)
        for t in range(len(x)):
            x[t] = np.float64(snapped[t]) * step * gain[t]
    if network.rotary:
        half = len(x) // 2
        for t in range(half):
            a, b = x[t], x[half + t]
            x[t], x[half + t] = a * cos[t] + b * sin[t], b * cos[t] - a * sin[t]


@kernel
def _saturated(x):
    return np.int16(min(max(np.rint(x), -_LIMIT), _LIMIT))


@kernel
def _remember(network, layer, new_keys, new_values, rows, turn, cache):
    """Write the rows' keys and values, float64 [n, kv_dim], into the caches."""
    (positions, slots), (cos, sin), (keys, values) = rows, turn, cache
    key_scale, value_scale = network.key_scale[layer], network.value_scale[layer]
    size = key_scale.shape[1]
    snapped = np.empty(size, np.int32)
    for i in range(len(positions)):
        slot, p = slots[i], positions[i] % (keys.shape[2] * WIDE)
        for h in range(len(key_scale)):
            key = new_keys[i, h * size : (h + 1) * size]
            _turn(key, network.key_gain[layer], cos[i], sin[i], network, snapped)
            for t in range(size):
                keys[slot, h, p // WIDE, t // 2, p % WIDE, t % 2] = _saturated(key[t] * key_scale[h, t])
                value = _saturated(new_values[i, h * size + t] * value_scale[h])
                values[slot, h, p // WIDE, t // COLUMNS, p % WIDE // 2, t % COLUMNS, p % 2] = value


@kernel
def _attend(network, layer, queries, rows, window, turn, cache):
    """Return snapped rows int32 [n, q_dim] and steps of what attention mixes.

    Queries, float64 [n, q_dim], are overwritten.

    Two or three heads with the same keys are taken at a time; where fewer are left over, the others' places hold what
    was there before, and nothing that is made of it is read.
    """
    (positions, slots), (cos, sin), (keys, values) = rows, turn, cache
    key_scale, value_scale = network.key_scale[layer], network.value_scale[layer]
    size, blocks = key_scale.shape[1], keys.shape[2]
    heads = queries.shape[1] // size
    group = heads // len(key_scale)
    at_once = heads_at_once(group)
    snapped, query = np.empty(size, np.int32), np.zeros((at_once, size), np.int16)
    width = (blocks + 1) * WIDE  # of a window that begins within a block
    scale = np.empty(at_once)
    scores, digits = np.empty((at_once, width), np.int32), np.zeros((2 * at_once, width), np.int16)
    sums, totals = np.empty((2 * at_once, values.shape[3] * COLUMNS), np.int64), np.empty(at_once)
    mixed, steps = np.empty(queries.shape, np.int32), np.empty(len(queries))
    for i in range(len(queries)):
        slot, p = slots[i], positions[i]
        first = p // window * window
        base = first // WIDE * WIDE
        begin, count = first - base, p + 1 - base
        digits[:, :begin] = 0
        digits[:, count : count + 1] = 0  # the other of a pair
        for h in range(heads):
            kv, place = h // group, h % group % at_once
            out = queries[i, h * size : (h + 1) * size]
            _turn(out, network.query_gain[layer], cos[i], sin[i], network, snapped)
            for t in range(size):
                out[t] = out[t] / key_scale[kv, t]
            scale[place] = _snap(out, snapped, network.query_bits) * network.score_unit
            for t in range(size):
                query[place, t] = np.int16(snapped[t])
            if place < at_once - 1 and h % group < group - 1:
                continue  # until there are so many
            for at in range(0, count, WIDE):
                multiply_wide(query, keys[slot, kv, (base + at) // WIDE % blocks], scores[:, at:])
            for g in range(place + 1):
                low, high = digits[g, begin:count], digits[at_once + g, begin:count]
                totals[g] = softmax(scores[g, begin:count], scale[g], LARGEST_SCORE, low, high)
            weighted_sum(digits, values[slot, kv], base, count, sums)
            for g in range(place + 1):
                at = (h - place + g) * size
                for t in range(size):
                    value = np.float64(sums[g, t] + (sums[at_once + g, t] << 11)) / totals[g]
                    queries[i, at + t] = value / value_scale[kv]
        steps[i] = _snap(queries[i], mixed[i], SNAP_BITS)
    return mixed, steps


@kernel
def _sigmoid(x, table):
    """Compute `codec.exact.linear.sigmoid` of one number."""
    index = np.rint(abs(x) * float(SIGMOID_GRID))
    found = table[int(min(index, float(len(table) - 1)))]
    return 1.0 - found if x < 0.0 else found


@kernel
def _activate(network, hidden):
    """Return snapped rows int32 [n, hidden_dim] and steps of activations of `hidden`."""
    n, width = hidden.shape[0], hidden.shape[1] // 2 if network.gated else hidden.shape[1]
    out, steps, row = np.empty((n, width), np.int32), np.empty(n), np.empty(width)
    for i in range(n):
        for t in range(width):
            x = hidden[i, t]
            if network.gated:
                row[t] = x * _sigmoid(x, network.sigmoid) * hidden[i, width + t]
            else:
                row[t] = x * _sigmoid((x * x * GELU_CUBE + GELU_LINE) * x, network.sigmoid)
        steps[i] = _snap(row, out[i], SNAP_BITS)
    return out, steps


@kernel
def run(network, x, positions, places, slots, keys, values, window):
    """Run rows through the network.

    Args:
        network: a `Network`.
        x: float64 [n, dim], embedded tokens; overwritten.
        positions: int64 [n].
        places: int64 [n], the positions in their windows.
        slots: int64 [n].
        keys: as in `codec.backends.cpu.network.run`.
        values: as in `codec.backends.cpu.network.run`.
        window: how many tokens a window has.

    Returns:
        The snapped, normalised last hidden state: int32 [n, dim] and its steps [n].
    """
    c, rows = network, (positions, slots)
    cos, sin = rotations(c.turns, places)
    turn = cos, -sin
    for layer in range(len(c.key_scale)):
        hidden, steps = _norm(x, c.layer_norm, c.epsilon)
        new_keys, new_values = _product(c.key, layer, hidden, steps), _product(c.value, layer, hidden, steps)
        queries, cache = _product(c.query, layer, hidden, steps), (keys[layer], values[layer])
        _remember(c, layer, new_keys, new_values, rows, turn, cache)
        hidden, steps = _attend(c, layer, queries, rows, window, turn, cache)
        x += _product(c.attention_out, layer, hidden, steps)
        hidden, steps = _norm(x, c.layer_norm, c.epsilon)
        hidden, steps = _activate(c, _product(c.up, layer, hidden, steps))
        x += _product(c.down, layer, hidden, steps)
    return _norm(x, c.layer_norm, c.epsilon)
