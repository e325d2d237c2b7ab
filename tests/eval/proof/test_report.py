"""eval.proof.report and eval.proof.saved: one file that needs no other, that leaves out what is not there, and runs
nothing.
"""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest

from codec.errors import CodecError, FormatError
from codec.model.checkpoint import save_checkpoint
from codec.run_folder import DOCUMENTS as SAVED_DOCUMENTS
from codec.run_folder import PACK, PROOF
from eval.proof.report import report, tensor_sizes
from eval.proof.saved import load_proof, save_proof
from tests.support.browser import look
from tests.support.helpers import EVERY_OPTION, PLAIN, random_weights, tiny_blob, tiny_pack
from tests.support.proofs import DOCUMENTS, blob, pack, proof
from trainer.data.sample import sp1024
from trainer.recipe import RECIPE, Recipe
from underpar.cli import main

METRICS = [
    {"step": 1, "seconds": 0.5, "train_loss": 6.9, "lr_scale": 1.0, "tokens_per_second": 4096.0},
    {"step": 2, "seconds": 1.0, "train_loss": 6.1, "lr_scale": 0.5, "tokens_per_second": 4096.0},
    {"step": 2, "seconds": 1.0, "val_loss": 6.2},
]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run folder with everything in it."""
    run = tmp_path_factory.mktemp("runs") / "run <b>&"
    run.mkdir()
    save_checkpoint(run, random_weights(EVERY_OPTION), EVERY_OPTION, sp1024())
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (run / RECIPE).write_text(json.dumps(Recipe().to_dict()))
    save_proof(run, blob(), pack(), DOCUMENTS, proof())
    return run


@pytest.fixture
def run(full, tmp_path):
    """A copy to take things out of."""
    return shutil.copytree(full, tmp_path / "run")


class Page(HTMLParser):
    """Collects a page's tags, ids, references and open elements."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.outside, self.inside = [], set(), [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.note(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def note(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src", "action", "data", "srcset", "style", "clip-path", "fill"):
                target = re.search(r"url\(([^)]*)\)", value or "") or re.match("()", "")
                link = target[1] if name in ("style", "clip-path", "fill") else value
                if link:
                    (self.inside if link.startswith("#") else self.outside).append(link)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(full):
    page = Page(report(full))
    assert page.open == []
    assert page.outside == []
    assert not {"script", "link", "iframe", "img", "object"} & page.tags
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.inside} <= set(page.ids)
    assert "@import" not in report(full)


def test_everything_that_is_there_is_shown(full):
    text = report(full)
    for part in ("training curve", "bits per tensor", "account of the bits", "bits per byte of each document"):
        assert f'aria-label="{part}"' in text
    for words in ("proof holds", "brotli -11", "with the model&#x27;s bytes", "matrix_lr", 'class="surprisal"'):
        assert words in text
    assert f"{proof().archive_bytes:,}" in text
    assert "Not here yet" not in text


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False)])
def test_a_browser_shows_it(full, tmp_path, width, dark):
    seen = look(report(full), tmp_path, width, dark)
    assert seen["console"] == []
    assert seen["wide"] == []
    names = [name for name, *_ in seen["pictures"]]
    assert {"training curve", "bits per tensor", "account of the bits", "bits per byte of each document"} <= set(names)
    assert all(200 < wide <= width and height > 20 for name, wide, height in seen["pictures"])
    for words in ("proof holds", "brotli -11", "run <b>&"):
        assert words in seen["text"]


def test_the_browser_complains_of_what_is_broken(tmp_path):
    page = '<body><main><img src="missing.png"><p style="width: 3000px">wide</p><script>throw 1</script></main></body>'
    seen = look(page, tmp_path)
    assert len(seen["console"]) == 1 and "Uncaught 1" in seen["console"][0]
    assert seen["wide"] == ["P"]


def test_names_and_text_are_escaped(full):
    text = report(full)
    assert "<title>underpar: run &lt;b&gt;&amp;</title>" in text
    assert "run <b>&" not in text


def test_the_same_folder_is_the_same_page(full):
    assert report(full) == report(full)


@pytest.mark.parametrize(
    "gone, command",
    [
        (["metrics.jsonl"], "underpar train RECIPE -o "),
        ([PACK, PROOF, SAVED_DOCUMENTS], "underpar pack "),
        ([PROOF], "underpar prove "),
        ([SAVED_DOCUMENTS], "underpar prove "),
    ],
)
def test_what_is_missing_is_left_out_with_the_command_that_makes_it(run, gone, command):
    for name in gone:
        (run / name).unlink()
    text = report(run)
    assert f"Not here yet; to make it: <code>{command}" in text
    assert Page(text).open == []


def test_without_a_recipe_the_shape_of_the_model_is_shown(run):
    (run / RECIPE).unlink()
    assert "<td>model_dim</td><td>32</td>" in report(run)
    for name in (PACK, PROOF, SAVED_DOCUMENTS):
        (run / name).unlink()
    assert "<td>model_dim</td><td>32</td>" in report(run)


def test_a_proof_that_fails_says_where(run):
    values = json.loads((run / PROOF).read_text())
    values |= {"ok": False, "first_difference": {"document": 3, "byte": 17}}
    (run / PROOF).write_text(json.dumps(values))
    text = report(run)
    assert "The proof fails: document 3 differs from byte 17 on." in text
    assert "proof holds" not in text


def test_a_proof_of_another_pack_is_not_shown(run):
    (run / PACK).write_bytes(tiny_blob(PLAIN))
    text = report(run)
    assert "The proof in this folder is of another pack." in text
    assert "bits per byte, coded" not in text


def test_a_metrics_line_that_a_kill_cut_short_is_dropped(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "sec')
    assert "2 steps in 1 seconds" in report(run)


@pytest.mark.parametrize(
    "name, content",
    [
        ("metrics.jsonl", b"not json\n"),
        (RECIPE, b"[1"),
        (RECIPE, b"[1, 2]"),
        (PROOF, b"{"),
        (PROOF, b"[]"),
        (SAVED_DOCUMENTS, b"{}"),
        (SAVED_DOCUMENTS, b"\xff"),
        (PACK, b"UPAK"),
    ],
)
def test_a_damaged_file_is_a_typed_error(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(CodecError):
        report(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FormatError, match="pass a run folder"):
        report(tmp_path)
    with pytest.raises(FormatError, match="no such folder"):
        report(tmp_path / "none")


def test_a_proof_comes_back_as_it_was_saved(full):
    loaded = load_proof(full)
    assert loaded is not None
    assert loaded.proof == proof().to_json()
    assert loaded.pack_sha256 == pack().sha256
    assert [d.text for d in loaded.documents] == [len(d) for d in DOCUMENTS]
    assert sum(d.coded for d in loaded.documents) == proof().payload_bytes
    assert loaded.example == len(DOCUMENTS) - 1  # the one whose length is nearest to a page
    text = b"".join(piece.text for piece in loaded.pieces)
    assert text == DOCUMENTS[loaded.example]


def test_another_pack_in_the_folder_is_not_overwritten(run):
    before = (run / PACK).read_bytes()
    with pytest.raises(CodecError, match="another pack"):
        save_proof(run, tiny_blob(PLAIN), tiny_pack(PLAIN), DOCUMENTS, proof())
    assert (run / PACK).read_bytes() == before


def test_sizes_of_tensors_add_up_to_the_pack():
    sizes = tensor_sizes(pack())
    assert sum(size.bytes for size in sizes) == pack().size
    assert sum(size.weights for size in sizes) == pack().parameter_count
    assert {size.role for size in sizes} == {"embedding", "hash", "matrix", "vector", "other"}


def test_the_command_writes_the_page(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["underpar", "report", str(run), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    page = (run / "report.html").read_bytes()
    assert told == {"report": str(run / "report.html"), "bytes": len(page)}
    assert page.decode() == report(run)
