"""artifacts.submission.significance: what beats a record, and what does not."""

import json
import math

import pytest

from artifacts.submission.significance import Record, compare, load_record, refusals
from codec.errors import FormatError
from eval.welch import moments

RECORD = Record("#1", (1.0602, 1.0611, 1.0607), 3.7, 151_080_891)


def test_five_thousandths_of_a_nat_in_bits_per_byte():
    assert RECORD.required == pytest.approx(0.005 / math.log(2) / 3.7)
    ours = [score - RECORD.required for score in RECORD.bpb]
    assert compare(ours, RECORD).t == pytest.approx(0, abs=1e-9)
    assert compare(ours, RECORD).p == pytest.approx(0.5)


def test_a_clear_improvement_passes_and_less_does_not():
    clear = compare([1.0560, 1.0565, 1.0562], RECORD)
    assert clear.p < 0.01
    assert refusals(clear, 3, RECORD.text_bytes, RECORD) == []
    near = compare([1.0585, 1.0590, 1.0588], RECORD)
    assert 0.01 < near.p < 0.7
    assert "expected under 0.01" in refusals(near, 3, RECORD.text_bytes, RECORD)[0]


def test_other_text_and_too_few_runs_are_refused():
    clear = compare([1.0, 1.0001], RECORD)
    found = " ".join(refusals(clear, 2, 2_504_310, RECORD))
    assert "2 runs" in found
    assert "2,504,310 bytes" in found
    assert refusals(clear, 3, 151_080_645, RECORD) == []  # the challenge's denominators differ a little


def test_one_score_on_a_side_leaves_the_others_variance():
    single = Record("#2", (1.06,), 3.7, 1)
    found = compare([1.050, 1.051, 1.052], single)
    mean, variance = moments([1.050, 1.051, 1.052])
    assert found.t == pytest.approx((1.06 - single.required - mean) / math.sqrt(variance / 3))
    assert found.degrees == pytest.approx(2)
    assert compare([1.0], single).p == 1.0  # nothing varies: nothing is shown
    assert compare([1.0, 1.0, 1.0], single).p == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "x"}',
        '{"name": "x", "bpb": [], "bytes_per_token": 3, "text_bytes": 9}',
        '{"name": "x", "bpb": [NaN], "bytes_per_token": 3, "text_bytes": 9}',
        '{"name": "x", "bpb": [1.1], "bytes_per_token": 0, "text_bytes": 9}',
        '{"name": "x", "bpb": ["a"], "bytes_per_token": 3, "text_bytes": 9}',
    ],
)
def test_a_record_that_is_none(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(FormatError, match="record"):
        load_record(tmp_path / "record.json")


def test_a_record_is_read(tmp_path):
    values = {"name": "#1", "bpb": list(RECORD.bpb), "bytes_per_token": 3.7, "text_bytes": 151_080_891}
    (tmp_path / "record.json").write_text(json.dumps(values))
    assert load_record(tmp_path / "record.json") == RECORD
