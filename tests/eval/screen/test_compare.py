"""eval.screen.compare and its picture: runs side by side in bits per byte, typed errors for what is no run."""

import json
import sys

import numpy as np
import pytest
from matplotlib.text import Annotation

from codec.errors import CodecError, FormatError
from eval import figures
from eval.screen.compare import files, read_runs
from eval.screen.compare_plots import curves, running_median, spread
from underpar.cli import main


def lines(count, start, speed, val_bpb=None):
    """What a run of `count` steps of 1,000 tokens notes, `speed` tokens a second."""
    found = [
        {
            "step": n,
            "seconds": 1000 * n / speed,
            "train_loss": start / n**0.1,
            "train_bpb": start / n**0.1 / 2,
            "tokens": 1000 * n,
            "tokens_per_second": speed,
            "mfu": None if n == 1 else 0.1 if n == 2 else 0.4,
            "peak_memory_bytes": n << 20,
        }
        for n in range(1, count + 1)
    ]
    if val_bpb:
        found.append({"step": count, "seconds": 1000 * count / speed, "val_loss": 2 * val_bpb, "val_bpb": val_bpb})
    return found


def write(folder, metrics):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


@pytest.fixture
def runs(tmp_path):
    """One on a GPU, one on a CPU that still goes on."""
    slow = [line | {"mfu": None, "peak_memory_bytes": None} for line in lines(50, 4.2, 500)]
    return [write(tmp_path / "fast", lines(100, 4, 2000, 1.31)), write(tmp_path / "slow", slow)]


def test_the_table_says_where_runs_have_arrived(runs):
    text = files(read_runs(runs))["runs.md"].decode()
    assert text.splitlines()[2:] == [
        "| fast | 100 | 100,000 | 50.0 | 2,000 | 39.7% | 0.1 GiB | 2.5238 | 1.2619 | 2.6200 | 1.3100 |",
        "| slow | 50 | 50,000 | 100.0 | 500 |  |  | 2.8402 | 1.4201 |  |  |",
    ]
    fast = read_runs(runs)[0].summary
    assert fast.mfu == pytest.approx((0.1 + 98 * 0.4) / 99)  # of the intervals that have one
    assert fast.peak_memory_bytes == 100 << 20


def test_the_picture_has_both_axes_every_batch_and_the_validation(runs):
    found = read_runs(runs)
    figure = curves(found)
    for axes, name in zip(figure.axes, ("seconds", "tokens"), strict=True):
        points, median, diamond, points_of_slow, _ = axes.lines
        np.testing.assert_allclose(points.get_data(), [getattr(found[0], name), found[0].bpb])
        np.testing.assert_allclose(median.get_ydata(), running_median(found[0].bpb, 5))
        assert diamond.get_xydata().tolist() == [[getattr(found[0], name)[-1], 1.31]]
        np.testing.assert_allclose(points_of_slow.get_xdata(), getattr(found[1], name))
        assert sorted(text.get_text() for text in axes.texts) == ["1.310", "fast", "slow"]
        assert axes.get_ylim()[0] < 1.26 and axes.get_ylim()[1] > 1.42
    assert figures.svg(figure) == figures.svg(curves(found))
    assert b"</svg>" in figures.svg(curves(found[1:]))


def test_labels_of_many_runs_are_in_the_picture_and_do_not_overlap(tmp_path):
    names = [f"{'very ' * n}long name" for n in range(7)]
    found = read_runs([write(tmp_path / name, lines(60, 4, 2000, 1.31)) for name in names])
    figure = curves(found)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
        assert len(boxes) == 14
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(box.x1 <= figure.bbox.x1 + 1 and box.y0 >= figure.bbox.y0 for box in boxes)


def test_the_median_is_of_a_window():
    values = np.random.default_rng(0).normal(size=30)
    expected = [np.median(values[max(0, n - 3) : n + 4]) for n in range(30)]
    np.testing.assert_allclose(running_median(values, 3), expected)


def test_what_meets_is_spread_about_its_mean():
    assert spread([0, 5, 10], 2, -9) == [0, 5, 10]
    assert spread([4, 4, 4.3, 20], 2, -9) == pytest.approx([2.1, 4.1, 6.1, 20])
    assert spread([4, 4, 20], 2, 4.5) == [4.5, 6.5, 20]


def test_runs_of_one_name_are_called_by_their_paths(runs, tmp_path):
    other = write(tmp_path / "other" / "fast", lines(3, 4, 2000))
    assert [run.summary.run for run in read_runs([runs[0], other])] == [str(runs[0]), str(other)]
    with pytest.raises(CodecError, match="named twice"):
        read_runs([runs[0], runs[1], tmp_path / "slow" / ".." / "fast"])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no steps in metrics.jsonl"),
        ("", "no steps"),
        ('{"step": 1, "seco', "no steps"),
        ('{"step": 3, "val_bpb": 1.0}\n', "no steps"),
        ("no\n", "not JSON Lines"),
        ("[1]\n", "expected objects"),
        (json.dumps(lines(1, 4, 500)[0] | {"train_bpb": None}) + "\n", "train_bpb missing from step 1.*train again"),
    ],
)
def test_what_is_no_run_is_a_typed_error(tmp_path, content, message):
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    with pytest.raises(FormatError, match=message):
        read_runs([run])


def test_the_command_writes_picture_and_tables(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["underpar", "compare", *map(str, runs), "-o", str(out), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "runs.json").read_text())
    assert [run["val_bpb"] for run in told["runs"]] == [1.31, None]
    assert sorted(path.name for path in out.iterdir()) == ["runs.json", "runs.md", "runs.svg"]
