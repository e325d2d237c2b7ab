"""eval.screen.ranks: Spearman's correlation of two screens' orders, its picture, and typed errors."""

import json
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
from typer.testing import CliRunner

from codec.errors import CodecError, FormatError
from eval import figures
from eval.screen import plots as screen_plots
from eval.screen.ranks import as_json, as_markdown, rank, ranks_of, spearman, verdict
from eval.screen.tables import Effect
from underpar.commands import app

PROXY = {"a": -0.02, "b": -0.01, "c": 0.01, "d": 0.02, "e": 0.01}
FULL = {"b": -0.03, "a": -0.02, "x": 0.5, "e": -0.01, "d": 0.04, "c": 0.03}


def screen(folder, differences, policy="flat"):
    """A folder of results with a difference for each variant."""
    effects = [
        Effect(name, 3, 1.2 + value, 0.01, value, 0.004 if value else None, 0.5 if value else None, None, 9, 9, None)
        for name, value in {"base": 0.0, **differences}.items()
    ]
    folder.mkdir()
    found = {"policy": policy, "variants": [asdict(effect) for effect in effects], "runs": []}
    (folder / "results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def ranking(tmp_path):
    return rank(screen(tmp_path / "proxy", PROXY), screen(tmp_path / "full", FULL))


def test_common_variants_are_ranked_in_both(ranking):
    assert as_markdown(ranking).splitlines()[:4] == [
        "| variant | rank, proxy | rank, full | change, proxy | change, full |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| b | 2 | 1 | −0.0100 ± 0.0040 | −0.0300 ± 0.0040 |",
        "| a | 1 | 2 | −0.0200 ± 0.0040 | −0.0200 ± 0.0040 |",
    ]
    assert [row.first_rank for row in ranking.ranked] == [2, 1, 3.5, 3.5, 5]
    assert ranking.alone == ["x"]
    found = as_json(ranking)
    assert found["same_direction"] == 4 and found["variants"][2]["variant"] == "e"
    expected = np.corrcoef([2, 1, 3.5, 3.5, 5], [1, 2, 3, 4, 5])[0, 1]
    assert found["rho"] == pytest.approx(expected)
    assert verdict(ranking).startswith(f"Spearman's ρ {expected:.2f} (p ")


def test_p_is_that_of_all_orders():
    first, second = ranks_of([0.3, 0.1, 0.4, 0.15, 0.9, 0.2]), ranks_of([0.3, 0.2, 0.6, 0.1, 0.7, 0.4])
    rho, p = spearman(first, second)
    assert rho == pytest.approx(1 - 6 * ((first - second) ** 2).sum() / (6 * 35))  # Spearman's formula, without ties
    all_orders = [np.corrcoef(first, order)[0, 1] for order in permutations(second)]
    assert p == pytest.approx(np.mean(np.abs(all_orders) >= rho - 1e-9), abs=0.01)
    assert spearman(first, -first)[0] == pytest.approx(-1)
    assert spearman(first, np.ones(6)) == (None, None)


def test_the_picture_shows_ranks_and_changes(ranking):
    figure = screen_plots.ranks(ranking)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "e", "c", "d"]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [2, 1, 3.5, 3.5, 5]
    assert [line.get_color() == figures.ORANGE for line in axes.lines[1:]] == [False, False, True, False, False]
    assert axes.texts[2].get_text().strip() == "+0.0100 / −0.0100"
    assert figures.svg(figure) == figures.svg(screen_plots.ranks(ranking))


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"policy": "flat", "variants": [{"variant": "a"}]}'])
def test_what_is_no_screen_is_a_typed_error(tmp_path, content):
    proxy = screen(tmp_path / "proxy", PROXY)
    (tmp_path / "full").mkdir()
    with pytest.raises(FormatError, match=r"results\.json: No such file"):
        rank(proxy, tmp_path / "full")
    (tmp_path / "full" / "results.json").write_text(content)
    with pytest.raises(FormatError, match="not what `underpar screen` writes"):
        rank(proxy, tmp_path / "full")


def test_screens_that_cannot_be_compared_are_refused(tmp_path):
    proxy = screen(tmp_path / "proxy", PROXY)
    with pytest.raises(CodecError, match=r"has flat scores, .* has document"):
        rank(proxy, screen(tmp_path / "documents", PROXY, "document"))
    with pytest.raises(CodecError, match="2 variants in common"):
        rank(proxy, screen(tmp_path / "few", {"a": 0.1, "b": 0.2, "y": 0.3}))
    alike = rank(proxy, screen(tmp_path / "alike", dict.fromkeys("abc", 0.1)))
    assert alike.rho is None and "no order" in verdict(alike)


def test_the_command_writes_table_and_picture(tmp_path):
    folders = [str(screen(tmp_path / name, values)) for name, values in (("proxy", PROXY), ("full", FULL))]
    done = CliRunner().invoke(app, ["rank", *folders, "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ranks.json", "ranks.md", "ranks.svg"]
