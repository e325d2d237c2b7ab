"""Write one HTML file about a run folder: recipe, training curve, contents of the pack, and figures of the proof.

The file stands alone: pictures are inline, nothing is fetched, no script runs. In place of a part that the folder
lacks, the file shows the command that makes the part.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from math import prod
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

import codec
from codec.cli.pack import describe
from codec.console import readable
from codec.errors import FormatError
from codec.files import read_bytes
from codec.model.checkpoint import WEIGHTS, load_checkpoint
from codec.model.parameters import parameters
from codec.pack.reader import Pack
from codec.run_folder import PACK
from eval import figures
from eval.proof import plots, surprisal
from eval.proof.saved import Evidence, load_proof
from trainer.recipe import RECIPE
from trainer.run.log import METRICS, read_metrics


def report(run: Path, name: str = "") -> str:
    """Make the report of a run folder, as HTML.

    Args:
        run: the folder.
        name: of the run, for the heading; the folder's without one.

    Raises:
        FormatError: the folder does not exist, holds nothing of a run, or holds a damaged file.
    """
    if not run.is_dir():
        raise FormatError(f"run {run}: no such folder; pass one that `underpar train` or `underpar demo` made")
    pack = codec.open(read_bytes(run / PACK, "pack")) if (run / PACK).exists() else None
    evidence = load_proof(run)
    metrics = read_metrics(run)
    if not (pack or evidence or metrics or (run / WEIGHTS).exists()):
        raise FormatError(f"run {run}: none of {METRICS}, {WEIGHTS}, {PACK} is there; pass a run folder")
    settings = _settings(run, pack)
    stale = bool(pack and evidence and evidence.pack_sha256 != pack.sha256)
    sections = [
        _summary(pack, None if stale else evidence, metrics),
        _training(run, metrics),
        _pack(run, pack),
        _stale_proof(run) if stale else _proof(run, evidence),
        settings,
    ]
    name = name or run.resolve().name
    return PAGE.substitute(title=escape(f"underpar: {name}"), name=escape(name), body="\n".join(sections))


def _summary(pack: Pack | None, evidence: Evidence | None, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Make the cards of the figures that a reader looks for first."""
    cards: list[tuple[str, str]] = []
    if evidence:
        proof = evidence.proof
        verdict = "holds" if proof["ok"] else "fails"
        cards += [(f"proof {verdict}", f"{proof['documents']:,} documents, {proof['text_bytes']:,} bytes")]
        cards += [(f"{proof['bpb_coded']:.4f}", "bits per byte, coded")]
        cards += [(f"{proof['bpb_raw']:.4f}", "bits per byte of the whole archive")]
    if pack:
        cards += [(f"{pack.size:,}", "bytes of pack"), (f"{pack.parameter_count:,}", "parameters")]
    if losses := [m["val_loss"] for m in metrics if m.get("val_loss") is not None]:
        cards += [(f"{losses[-1]:.4f}", "validation loss, nats per token")]
    found = "".join(f"<div><b>{escape(figure)}</b><span>{escape(what)}</span></div>" for figure, what in cards)
    return f'<div class="cards">{found}</div>' if cards else ""


def _training(run: Path, metrics: Sequence[Mapping[str, Any]]) -> str:
    if not any("train_loss" in m for m in metrics):
        return _section("Training", _lacks(f"underpar train RECIPE -o {run}"))
    steps = [m for m in metrics if "train_loss" in m]
    speed = steps[-1].get("tokens_per_second")
    note = f"{steps[-1]['step']:,} steps in {steps[-1]['seconds']:.0f} seconds"
    note += f", {speed:,.0f} tokens a second." if speed else "."
    return _section("Training", _picture(plots.training_curve(metrics), "training curve") + f"<p>{note}</p>")


def _pack(run: Path, pack: Pack | None) -> str:
    if pack is None:
        return _section("Pack", _lacks(f"underpar pack {run} -o {run / PACK}"))
    sizes = tensor_sizes(pack)
    rows = [(t.name, t.role, t.weights, 8 * t.bytes / t.weights if t.weights else None, t.bytes) for t in sizes]
    table = _table(("", "role", "weights", "bits per weight", "bytes"), rows)
    body = _picture(plots.bits_per_tensor(sizes), "bits per tensor")
    return _section("Pack", f"{body}<details><summary>Every tensor</summary>{table}</details>")


def _stale_proof(run: Path) -> str:
    return _section("Proof", f"<p>The proof in this folder is of another pack.</p>{_lacks(_prove(run))}")


def _prove(run: Path) -> str:
    return f"underpar prove {run / PACK} --docs TEXT --save {run}"


def _proof(run: Path, evidence: Evidence | None) -> str:
    if evidence is None:
        return _section("Proof", _lacks(_prove(run)))
    proof = evidence.proof
    if proof["ok"]:
        verdict = (
            f"The text was coded to {proof['archive_bytes']:,} bytes. A fresh process that was given pack and archive "
            f"and nothing else restored every one of its {proof['text_bytes']:,} bytes."
        )
    else:
        where = proof["first_difference"]
        verdict = (
            f"<strong>The proof fails: document {where['document']} differs from byte {where['byte']} on.</strong>"
        )
    parts = [f"<p>{verdict}</p>", _picture(plots.bits_account(proof), "account of the bits")]
    account = [(name.replace("_", " "), value) for name, value in proof.items() if not isinstance(value, dict)]
    parts += [f"<details><summary>The whole account</summary>{_table(('', ''), account)}</details>"]
    parts += [_picture(plots.bpb_per_document(evidence.documents), "bits per byte of each document")]
    parts += ["<p>Each document alone; the dashed lines are the means over all bytes.</p>"]
    ours = {"this pack": proof["archive_bytes"]}
    parts += [
        "<h3>Beside other compressors</h3>",
        _picture(plots.baselines(proof["text_bytes"], ours, evidence.peers), "coded size beside other compressors"),
        f"<p>{peers_note(proof['pack_bytes'])}</p>",
        _table(*peers_table(proof, evidence.peers)),
    ]
    if evidence.pieces:
        parts += [
            f"<h3>Document {evidence.example}, token by token</h3>",
            "<p>What each token costs under the exact model, the end of the document included. "
            "Point at a token for its bits.</p>",
            surprisal.html(evidence.pieces),
        ]
    return _section("Proof", "\n".join(parts))


def peers_note(pack_bytes: int) -> str:
    """Explain how the comparison with other compressors was made."""
    return (
        "The peers compress all documents as one stream; the archive codes each document alone and keeps the "
        f"boundaries. Decoding the archive needs the pack, too: {pack_bytes:,} bytes, which pay off over more text."
    )


def peers_table(proof: Mapping[str, Any], peers: Mapping[str, int]) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
    """Make the headers and rows of a table of archive and peers, smallest first."""
    text, pack = max(1, proof["text_bytes"]), proof["pack_bytes"]
    sizes = {name: (size, size) for name, size in peers.items()}
    sizes["this pack"] = (proof["archive_bytes"], proof["archive_bytes"] + pack)
    rows = [(name, size, f"{8 * size / text:.3f}", whole) for name, (size, whole) in sizes.items()]
    return ("", "coded bytes", "bits per byte", "with the model's bytes"), sorted(rows, key=lambda row: row[1])


def _settings(run: Path, pack: Pack | None) -> str:
    """Show the recipe if the folder has a recipe, else the config of the model."""
    if (run / RECIPE).exists():
        try:
            values = json.loads(read_bytes(run / RECIPE, "recipe"))
            tables = [(str(name), [(key, value) for key, value in part.items()]) for name, part in values.items()]
        except (ValueError, AttributeError) as error:
            raise FormatError(f"recipe {run / RECIPE}: not what underpar writes ({error})") from error
    else:
        config = pack.config if pack else load_checkpoint(run).config if (run / WEIGHTS).exists() else None
        if config is None:
            return ""
        tables = [("model", list(json.loads(config.to_json()).items()))]
    body = "".join(f"<div><h3>{escape(name)}</h3>{_table(('', ''), rows)}</div>" for name, rows in tables)
    return _section("Settings", f'<div class="settings">{body}</div>')


def tensor_sizes(pack: Pack) -> list[plots.TensorSize]:
    """List the bytes of every tensor of a pack, and the remaining bytes for scales, tokenizer and header."""
    roles = {name: p.role for name, p in parameters(pack.config).items()} if pack.config else {}
    sizes = []
    for tensor in describe(pack)["tensors"]:
        role = roles.get(tensor["name"], "matrix" if len(tensor["shape"]) > 1 else "vector")
        sizes.append(plots.TensorSize(tensor["name"], role, prod(tensor["shape"]), tensor["bytes"]))
    rest = max(0, pack.size - sum(t.bytes for t in sizes))
    return [*sizes, plots.TensorSize(plots.REST, "other", 0, rest)]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _lacks(command: str) -> str:
    return f"<p>Not here yet; to make it: <code>{escape(command)}</code></p>"


def _picture(figure: Figure, name: str) -> str:
    """Render a figure as an inline SVG with unique ids, since all pictures share one document."""
    text = figures.svg(figure).decode()
    text = text[text.index("<svg") :]
    for attribute in ('id="', 'href="#', "url(#"):
        text = text.replace(attribute, attribute + "".join(filter(str.isalnum, name)))
    return f'<figure role="img" aria-label="{escape(name)}">{text}</figure>'


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(headers) else ''}<tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return "" if value is None else readable(value)


PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1f2933; --soft: #5b6875; --line: #e4e8ee; --blue: #2563a8; }
body { margin: 0; background: #f5f7f9; color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 920px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 18px; }
h1 small { color: var(--soft); font-weight: normal; font-size: 15px; margin-left: 8px; }
h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 26px 0 8px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 26px; margin: 18px 0; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; }
.cards div { flex: 1 1 150px; background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.cards div { padding: 12px 16px; }
.cards b { display: block; font-size: 20px; color: var(--blue); }
.cards span { color: var(--soft); font-size: 13px; }
figure { margin: 4px 0 10px; }
figure svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; margin: 8px 0; }
th, td { text-align: right; padding: 3px 12px; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
details { margin: 6px 0 14px; }
summary { cursor: pointer; color: var(--blue); }
code { background: #eef1f5; padding: 2px 6px; border-radius: 4px; font-size: 13px; overflow-wrap: anywhere; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 0 28px; }
.settings h3 { margin-top: 6px; }
</style>
</head>
<body><main>
<h1>underpar<small>$name</small></h1>
$body
</main></body>
</html>
""")
