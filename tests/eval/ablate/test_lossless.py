"""eval.ablate.lossless: every lossless stage gives back every bit, and is of the size that its format says."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.errors import CodecError
from eval.ablate.lossless import STAGES, Table, Tables, grouped_stage, identical, similar_order


def some_tables(seed=0, rows=24, columns=40):
    generator = np.random.default_rng(seed)

    def table(r, c):
        symbols = generator.normal(0, 4, (r, c)).round().clip(-127, 127).astype(np.int8)
        return Table((r, c), symbols, generator.random(r).astype(np.float16))

    tables = {"tok_emb.weight": table(3 * rows, columns)}
    tables |= {f"blocks.{n}.attn.c_{k}.weight": table(rows, columns) for n in range(2) for k in "qv"}
    tables["conv"] = Table((4, 5, 2), table(4, 10).symbols, np.ones(4, np.float16))
    others = {"gain": np.arange(5, dtype=np.float16), "big": np.float32([1e30]), "count": np.array([[7]], np.int64)}
    return Tables(tables, {**others, "none": np.zeros((0, 3), np.float16)})


def stages():
    for name, stage in STAGES.items():
        marks = [pytest.mark.skip(reason=stage.missing())] if stage.missing() else []
        yield pytest.param(stage, id=name, marks=marks)


@pytest.mark.parametrize("stage", list(stages()))
def test_round_trip(stage):
    tables = some_tables()
    back = stage.decode(stage.encode(tables))
    assert identical(back, tables)
    for name, table in tables.tables.items():
        assert np.array_equal(back.tables[name].symbols, table.symbols)
        assert np.array_equal(back.tables[name].steps, table.steps)
        assert back.tables[name].shape == table.shape
    for name, other in tables.others.items():
        assert np.array_equal(back.others[name], other) and back.others[name].dtype == other.dtype


@pytest.mark.parametrize("stage", list(stages()))
def test_nothing_and_single_elements(stage):
    one = Tables({"emb": Table((1, 1), np.int8([[-127]]), np.float16([2]))}, {})
    for tables in (Tables({}, {}), one):
        assert identical(stage.decode(stage.encode(tables)), tables)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_streams_round_trip(seed, rows, columns):
    tables = some_tables(seed, rows, columns)
    for name in ("zlib-9", "zstd-22", "brotli-11"):
        assert identical(STAGES[name].decode(STAGES[name].encode(tables)), tables)


def test_identical_sees_every_part():
    tables = some_tables()
    for change in ("symbols", "steps"):
        changed = some_tables()
        getattr(changed.tables["conv"], change)[0] += 1
        assert not identical(tables, changed)
    other = some_tables()
    other.others["gain"][2] += 1
    assert not identical(tables, other)
    assert not identical(tables, Tables(tables.tables, {}))


def test_a_stream_is_little_more_than_its_symbols_compressed():
    tables = some_tables()
    symbols = b"".join(t.symbols.tobytes() for t in tables.tables.values())
    rest = sum(t.steps.nbytes for t in tables.tables.values()) + 40
    assert len(STAGES["zlib-9"].encode(tables)) < len(zlib.compress(symbols, 9)) + rest + 400


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 12))
def test_similar_order_takes_the_nearest_of_those_left(seed, rows):
    table = np.random.default_rng(seed).integers(-127, 128, (rows, 3)).astype(np.int8)
    order = similar_order(table)
    left = set(range(1, rows))
    assert order[0] == 0 and sorted(order) == list(range(rows))
    for before, after in pairwise(order):
        distances = {r: int(np.abs(table[r].astype(int) - table[before]).sum()) for r in left}
        assert after == min(distances, key=lambda r: (distances[r], r))
        left.remove(int(after))


def test_an_archiver_that_fails_or_is_absent_is_told():
    failing = grouped_stage("false", (), ())
    with pytest.raises(CodecError, match="false failed with status 1"):
        failing.encode(some_tables())
    assert grouped_stage("no-such-archiver", (), ()).missing() == "no-such-archiver is not installed"
