"""codec.pack.parts.context_coder: every integer comes back, sizes near the entropy, and matrices made to break the
arithmetic.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.errors import FormatError
from codec.pack.parts.context_coder import LIMIT, Decoder, encode_matrix, quarter_octaves, typical_of
from codec.quantization.quantized import OnTrellis, Quantized
from codec.quantization.trellis import CODES, predecessors, search

STEPS = st.sampled_from([0.0, 1e-38, 1e-45, 1e38, 3.4e38, 1.0]) | st.floats(0, 2.0**100, width=32)
INTEGERS = st.sampled_from([0, 1, -1, LIMIT, -LIMIT, LIMIT - 1]) | st.integers(-9, 9) | st.integers(-LIMIT, LIMIT)


@st.composite
def matrices(draw: st.DrawFn) -> Quantized:
    """Any integers on any steps; with a trellis, the path that is nearest to them."""
    shape = draw(st.tuples(st.integers(0, 20), st.integers(0, 8)))
    symbols = draw(arrays(np.int32, shape, elements=INTEGERS))
    rows = draw(arrays(np.float32, shape[0], elements=STEPS))
    columns = draw(st.none() | arrays(np.float32, shape[1], elements=STEPS))
    states = draw(st.sampled_from([0, 0, 4, 8, 256]))
    masks = [draw(arrays(np.bool_, size)) for size in shape]
    return on_path(symbols, rows, columns, states, draw(st.none() | st.just(OnTrellis(*masks))))


def on_path(
    symbols: np.ndarray, rows: np.ndarray, columns: np.ndarray | None, states: int, on: OnTrellis | None = None
) -> Quantized:
    """The integers themselves, or those on the trellis that are nearest to them."""
    found = symbols.astype(np.int32)
    if states and symbols.size:
        height, width = symbols.shape
        cells = [(r, c) for c in range(width) for r in range(height) if not on or (on.rows[r] and on.columns[c])]
        at = tuple(np.array(cells, int).reshape(-1, 2).T)
        samples = symbols[at].astype(np.float64).clip(4 - LIMIT, LIMIT - 4)
        found = found & ~1  # whole steps off the path
        found[at] = search(samples, predecessors(states), 0)[0]
    return Quantized(found, rows, columns, states, on=on)


NO_WORDS = np.zeros(0, np.uint16)


def decoded(stream: bytes, matrix: Quantized, words: np.ndarray = NO_WORDS, typical: int | None = None) -> np.ndarray:
    empty = replace(matrix, symbols=np.zeros_like(matrix.symbols))
    decoder = Decoder(stream)
    assert np.array_equal(decoder.words(len(words), len(words)), words)
    decoder.integers(empty, typical_of(matrix) if typical is None else typical)
    return empty.symbols


def round_trip(matrix: Quantized) -> bytes:
    stream = encode_matrix(matrix, [NO_WORDS], 0, typical_of(matrix))
    assert np.array_equal(decoded(stream, matrix), matrix.symbols)
    return stream


def plain(symbols: np.ndarray) -> Quantized:
    return Quantized(symbols.astype(np.int32), np.ones(len(symbols), np.float32))


@given(matrices())
def test_any_matrix(matrix):
    round_trip(matrix)


@given(st.lists(st.integers(0, 1023), max_size=60), st.integers(0, 60))
def test_words_of_steps(words, rows):
    """Of 15 bits where rows alone have steps, of 10 bits where columns have steps, too."""
    matrix, rows = plain(np.array([[3, -1]])), min(rows, len(words))
    wide = 31 * np.array(words, np.uint16)
    narrow = np.array(words, np.uint16)
    for parts, count in (([wide], len(words)), ([narrow], rows), ([narrow, narrow[::-1]], rows)):
        if parts[0] is not wide and rows == len(words):
            continue
        decoder = Decoder(encode_matrix(matrix, parts, count, 0))
        for part in parts:
            assert np.array_equal(decoder.words(len(part), count), part)
        decoder.integers(empty := plain(np.zeros((1, 2))), 0)
        assert empty.symbols.tolist() == [[3, -1]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("states", [0, *CODES])
@pytest.mark.parametrize("columns", [False, True])
def test_shapes(shape, states, columns):
    symbols = np.random.default_rng(0).integers(-LIMIT, LIMIT, shape, endpoint=True).astype(np.int32)
    rows, scales = np.ones(shape[0], np.float32), np.full(shape[1], 1e-20, np.float32) if columns else None
    round_trip(on_path(symbols, rows, scales, states))


@given(st.lists(st.sampled_from([0, 0, 0, 1, -1, 5, LIMIT, -LIMIT]), min_size=1, max_size=12), st.integers(1, 400))
@example([LIMIT, 0], 300)
def test_no_pattern_overflows_the_buffer(pattern, repeats):
    """Models that have learnt one thing and see another cost at most 16 bytes an integer."""
    symbols = np.repeat(np.array(pattern, np.int32), repeats)
    for matrix in (plain(symbols[:, None]), plain(symbols[None]), plain(symbols[::-1, None])):
        assert len(round_trip(matrix)) <= 16 * symbols.size + 8


def test_integers_beyond_the_limit():
    for value in (LIMIT + 1, -LIMIT - 1, 2**31 - 1, -(2**31)):
        with pytest.raises(FormatError, match=rf"integers up to {abs(value)}, expected at most {LIMIT}"):
            encode_matrix(plain(np.array([[0, value]])), [NO_WORDS], 0, 0)


def test_expectations_do_not_overflow():
    """A row whose share of every column is the greatest possible: its mean, times a sudden rise, is beyond 2^63."""
    symbols = np.zeros((1000, 6100), np.int32)
    symbols[:, 0:20:2] = symbols[-1] = symbols[:, -10:] = LIMIT - 1
    columns = np.full(6100, 2.0**19, np.float32)
    columns[5] = 1
    round_trip(Quantized(symbols, np.ones(1000, np.float32), columns))


@given(st.binary(max_size=200), matrices(), st.integers(0, 127))
def test_garbage_is_integers_or_an_error(data, matrix, typical):
    empty = replace(matrix, symbols=np.zeros_like(matrix.symbols))
    try:
        Decoder(data).integers(empty, typical)
    except FormatError as error:
        assert f"stream of {len(data)} bytes" in str(error)
    assert np.abs(empty.symbols.astype(np.int64)).max(initial=0) <= 1 << 25


def test_truncated_streams():
    """What lacks bytes does not decode to the same integers, and nearly always is told; a pack's CRC sees the rest."""
    matrix = plain(np.rint(np.random.default_rng(0).normal(size=(64, 16)) * 8))
    stream, told = round_trip(matrix), 0
    for size in range(len(stream)):
        try:
            assert not np.array_equal(decoded(stream[:size], matrix), matrix.symbols)
        except FormatError as error:
            assert f"stream of {size} bytes ends inside a matrix of 1024 integers" in str(error)
            told += 1
    assert told >= len(stream) - 8


def entropy(symbols: np.ndarray) -> float:
    """Bytes by the frequencies of the integers."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum()) / 8


@pytest.mark.parametrize("shape, deviation", [((512, 512), 6), ((1024, 512), 25), ((512, 512), 300), ((512, 512), 0.3)])
def test_stationary_matrices_cost_their_entropy(shape, deviation):
    matrix = plain(np.rint(np.random.default_rng(0).normal(size=shape) * deviation))
    assert len(round_trip(matrix)) < 1.005 * entropy(matrix.symbols)


def test_small_matrices_pay_little_to_learn():
    matrix = plain(np.rint(np.random.default_rng(0).normal(size=(48, 48)) * 6))
    assert len(round_trip(matrix)) < 1.03 * 48 * 48 * (np.log2(6) + 2.047) / 8


def test_scales_of_rows_and_columns_are_learnt():
    """Against the frequencies of all integers, and against those of each weight's true distribution."""
    rng = np.random.default_rng(0)
    scales = 6 * np.exp(0.4 * rng.normal(size=(768, 1)) + 0.4 * rng.normal(size=768))
    matrix = plain(np.rint(rng.normal(size=(768, 768)) * scales))
    size = len(round_trip(matrix))
    assert size < 0.95 * entropy(matrix.symbols)
    assert size < 1.01 * float(np.maximum(np.log2(scales) + 2.047, 0).sum()) / 8


def test_steps_are_taken_into_account():
    """The same weights on steps of any size per row and column: integers of any size, no longer code than their own."""
    rng = np.random.default_rng(0)
    rows, columns = (np.exp2(rng.normal(size=400)).astype(np.float32) for _ in range(2))
    symbols = np.rint(rng.normal(size=(400, 400)) * 60 / rows[:, None] / columns)
    ideal = float((np.log2(60 / rows[:, None] / columns) + 2.047).clip(0).sum()) / 8
    assert len(round_trip(Quantized(symbols.astype(np.int32), rows, columns))) < 1.02 * ideal
    assert entropy(symbols) > 1.05 * ideal


def test_a_trellis_saves_a_bit():
    samples = np.random.default_rng(0).normal(size=(256, 256)) * 20
    ones = np.ones(256, np.float32)
    with_trellis = round_trip(on_path(samples, ones, None, 8))
    without = round_trip(plain(np.rint(samples)))
    assert len(without) - len(with_trellis) == pytest.approx(256 * 256 / 8, rel=0.05)


def test_quarter_octaves():
    powers = np.array([1, 1.25, 1.5, 1.75, 2, 4, 2.0**-126], np.float32)
    assert (quarter_octaves(powers) - 4 * 127).tolist() == [0, 1, 2, 3, 4, 8, -4 * 126]
    assert quarter_octaves(np.array([0, 8, 2], np.float32)).tolist() == [4 * 128, 4 * 130, 4 * 128]
    assert quarter_octaves(np.zeros(2, np.float32)).tolist() == [0, 0]


def test_golden_bytes():
    """A new digest here means a new format version."""
    n = np.arange(40 * 30).reshape(40, 30)
    symbols = ((n * 7919 % 251) - 125) // (1 + n % 7)
    rows, columns = (2.0 ** (np.arange(40) % 5)).astype(np.float32), (1 + np.arange(30) % 4 / 4).astype(np.float32)
    parts = [plain(symbols), on_path(symbols, rows, columns, 8), Quantized(symbols[::2], rows[::2])]
    parts += [on_path(symbols, rows, columns, 256), Quantized(symbols * 1000, rows)]
    content = b"".join(round_trip(matrix) for matrix in parts)
    assert hashlib.sha256(content).hexdigest()[:16] == "afeb33deeb03da9d"
