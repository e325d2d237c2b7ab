"""eval.proof.plots: every picture shows its data, says its units, and is the same bytes every time."""

import numpy as np
import pytest
from matplotlib.text import Annotation

from eval import figures
from eval.proof import plots
from eval.proof.plots import DocumentSize, TensorSize

METRICS = [
    *({"step": n, "seconds": n / 4, "train_loss": 7 / n**0.2, "lr_scale": min(1, 2 - n / 50)} for n in range(1, 101)),
    {"step": 100, "seconds": 25.0, "val_loss": 3.1},
]
TENSORS = [
    TensorSize("tok_emb.weight", "embedding", 2048, 1400),
    TensorSize("blocks.0.attn.c_q.weight", "matrix", 1024, 512),
    TensorSize("blocks.0.attn_scale", "vector", 32, 64),
    TensorSize("blocks.0.mlp_scale", "vector", 32, 64),
    TensorSize("bigram.embed.weight", "hash", 512, 128),
    TensorSize(plots.REST, "other", 0, 900),
]
PROOF = {
    "bpb_float": 1.5,
    "bpb_exact": 1.50001,
    "bpb_ideal": 1.4999,
    "bpb_coded": 1.502,
    "bpb_canonical": 1.502,
    "bpb_raw": 1.7,
}
DOCUMENTS = [DocumentSize(1000, 250, 500), DocumentSize(300, 90, 190), DocumentSize(0, 0, 0)]

FIGURES = {
    "training": lambda: plots.training_curve(METRICS),
    "tensors": lambda: plots.bits_per_tensor(TENSORS),
    "documents": lambda: plots.bpb_per_document(DOCUMENTS),
    "account": lambda: plots.bits_account(PROOF),
    "peers": lambda: plots.baselines(1000, {"this pack": 240}, {"gzip -9": 500, "xz -9e": 480}),
}


def texts(figure):
    """Everything that is written in a figure, and its axes' labels."""
    figure.canvas.draw()
    found = []
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        found += [text.get_text() for text in axes.texts]
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_data_is_the_same_picture(name):
    picture = figures.svg(FIGURES[name]())
    assert picture == figures.svg(FIGURES[name]())
    assert picture.startswith(b"<?xml")
    assert b"</svg>" in picture
    assert b"<dc:date>" not in picture
    assert figures.png(FIGURES[name]()).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("name", FIGURES)
def test_labels_stay_inside_the_picture(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    whole = figure.bbox
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x0 >= whole.x0 and box.x1 <= whole.x1 + 1, text
            assert box.y0 >= whole.y0 and box.y1 <= whole.y1, text


@pytest.mark.parametrize("name", FIGURES)
def test_annotations_do_not_overlap(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    boxes = [t.get_window_extent() for axes in figure.axes for t in axes.texts if isinstance(t, Annotation)]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlaps == []


def test_the_training_curve_has_seconds_nats_and_the_validation_loss():
    figure = plots.training_curve(METRICS)
    words = texts(figure)
    assert {"seconds of training", "nats per token", "validation 3.100"} <= set(words)
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [m["seconds"] for m in METRICS[:-1]])
    np.testing.assert_allclose(y, [m["train_loss"] for m in METRICS[:-1]])


def test_a_run_that_was_killed_at_once_still_has_a_picture():
    assert b"</svg>" in figures.svg(plots.training_curve([]))
    assert b"</svg>" in figures.svg(plots.training_curve(METRICS[:1]))


def test_smoothing_is_the_mean_of_a_window():
    values = np.random.default_rng(0).normal(size=50)
    expected = [values[max(0, i - 4) : i + 5].mean() for i in range(50)]
    np.testing.assert_allclose(figures.smoothed(values, 4), expected)


def test_tensors_are_grouped_by_role_and_vectors_are_one_bar():
    figure = plots.bits_per_tensor(TENSORS)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["tok_emb", "bigram.embed", "0.attn.c_q", "all vectors", plots.REST]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(widths, [8 * 1400 / 2048, 2, 4, 16, 0])
    assert [bar.get_width() for bar in figure.axes[1].patches] == [1400, 128, 512, 128, 900]
    assert "Bytes (3.07 kB in all)" in texts(figure)


def test_the_mean_over_documents_counts_bytes():
    words = texts(plots.bpb_per_document(DOCUMENTS))
    assert f"{8 * 340 / 1300:.2f}" in words
    assert f"{8 * 690 / 1300:.2f}" in words


def test_no_documents_make_an_empty_picture():
    assert b"</svg>" in figures.svg(plots.bpb_per_document([]))


def test_the_account_names_every_step_and_what_it_adds():
    words = texts(plots.bits_account(PROOF))
    assert set(plots.STEPS) <= set(words)
    assert {"+0.00001", "−0.00011", "+0.00210", "0", "+0.19800"} <= set(words)


def test_an_account_of_nothing():
    assert b"</svg>" in figures.svg(plots.bits_account(dict.fromkeys(PROOF, 0.0)))


def test_peers_are_sorted_by_size():
    figure = plots.baselines(1000, {"this pack": 490}, {"gzip -9": 500, "xz -9e": 480})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["xz -9e", "this pack", "gzip -9"]
    assert "490 bytes · 3.92 bits per byte" in texts(figure)
