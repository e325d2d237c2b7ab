"""eval.bench.text and its command: what is here restores the text, and sizes are those of the files."""

import json
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

import codec
from codec.errors import CodecError
from eval.bench import text
from eval.bench.plots import ratio_against_speed
from eval.bench.text import OURS, Measured, Pair, baselines, measure
from eval.cli import bench as cli_bench
from eval.figures import svg
from tests.support.helpers import tiny_blob, tiny_pack
from trainer.data.sample import val_documents
from underpar.commands import app

DOCUMENTS = [document[:400] for document in islice(val_documents(), 3)] + [b"", b"\0\xff"]
PACK = tiny_pack()


def test_every_baseline_restores_what_it_compressed():
    found, missing = baselines()
    assert not set(found) & set(missing)
    assert {"zstd -22 --ultra --long", "xz -9e", "brotli -11"} <= set(found)
    for name, pair in found.items():
        for data in (b"".join(DOCUMENTS), b"a"):
            assert pair.decompress(pair.compress(data)) == data, name


def test_measured_bytes_are_the_files(monkeypatch):
    quick = {"brotli -11": baselines()[0]["brotli -11"]}
    monkeypatch.setattr(text, "baselines", lambda: (quick, {}))
    rows = measure({"one": DOCUMENTS, "two": DOCUMENTS[:1]}, PACK)
    assert [(row.text, row.name) for row in rows] == [(t, n) for t in ("one", "two") for n in ("brotli -11", OURS)]
    assert rows[0].text_bytes == sum(map(len, DOCUMENTS))
    assert rows[0].bytes == len(quick["brotli -11"].compress(b"".join(DOCUMENTS)))
    assert rows[1].bytes == len(codec.encode(PACK, DOCUMENTS))
    assert rows[0].ratio == rows[0].ratio_with_model == rows[0].text_bytes / rows[0].bytes
    assert rows[1].ratio_with_model == rows[1].text_bytes / (rows[1].bytes + PACK.size)
    assert ratio_against_speed(rows) is not None
    assert svg(ratio_against_speed(rows)) == svg(ratio_against_speed(rows))


def test_names_in_the_picture_meet_neither_each_other_nor_lines():
    speeds = {
        "zpaq": (3.58, 427, 404),
        "lrzip": (3.52, 497, 553),
        "ppmd": (3.55, 7007, 5346),
        "brotli": (3.32, 943, 3e5),
    }
    rows = [
        Measured("Wikipedia", name, 150_000, round(150_000 / ratio), 0, 150 / encoding, 150 / decoding, 1, 1)
        for name, (ratio, encoding, decoding) in (speeds | {f"{n}, again": speeds[n] for n in speeds}).items()
    ]
    figure = ratio_against_speed(rows)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    lines = [line.get_window_extent() for line in axes.lines]
    assert len(boxes) == len(rows)
    for n, box in enumerate(boxes):
        assert not box.count_overlaps([*boxes[:n], *lines])


def test_a_baseline_that_loses_text_is_told(monkeypatch):
    broken = {"broken": Pair(lambda data: data, lambda data: data[1:])}
    monkeypatch.setattr(text, "baselines", lambda: (broken, {}))
    with pytest.raises(CodecError, match="broken does not restore one"):
        measure({"one": DOCUMENTS}, PACK)


def test_the_command_writes_table_and_picture(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(text, "baselines", lambda: ({}, {"zpaq -m5": "no program zpaq"}))
    (tmp_path / "tiny.pack").write_bytes(tiny_blob())
    lines = [json.dumps({"text": "A line of text, " * 9}) for _ in range(5)]
    (tmp_path / "some.text.jsonl").write_text("\n".join(lines))
    arguments = [
        "bench", tmp_path / "tiny.pack", "--docs", tmp_path / "some.text.jsonl",
        "--bytes", 300, "-o", tmp_path / "out", "--json",
    ]  # fmt: skip
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert json.loads(found.stdout.splitlines()[-1]) == told
    assert told["missing"] == {"zpaq -m5": "no program zpaq"}
    assert [(row["text"], row["name"], row["text_bytes"]) for row in told["rows"]] == [("some", OURS, 288)]
    assert (tmp_path / "out" / "bench.svg").read_bytes().startswith(b"<?xml")


def test_a_cut_is_of_whole_documents(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x" * size}) for size in (100, 50, 30)))
    assert list(map(len, cli_bench.cut(path, 10))) == [100]
    assert list(map(len, cli_bench.cut(path, 150))) == [100, 50]
    assert len(cli_bench.cut(path, 999)) == 3


def test_measurements_have_units_in_their_names():
    row = Measured("t", "n", 100, 50, 0, 1.0, 1.0, 1.0, 1.0).to_json()
    assert row["ratio"] == row["ratio_with_model"] == 2
