"""Make a submission folder for the challenge, whose score anyone can reproduce from the folder alone.

The folder holds the pack, the scored text as an archive of that pack, the decoder's source
(`artifacts.submission.minify`), the script that decodes and compares (`artifacts.submission.evaluate`), the training
script with its recipe, and the files that the challenge asks for: README.md, submission.json, logs, requirements.txt.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from artifacts import provenance
from artifacts.folders import write_sums
from artifacts.submission import evaluate, minify
from artifacts.submission.ledger import LIMIT, Ledger, folder_ledger
from artifacts.submission.readme import readme
from artifacts.submission.significance import Comparison, Record, compare, refusals
from codec.console import CheckFailed
from codec.errors import CodecError, FormatError, MismatchError
from codec.files import new_folder, read_bytes
from codec.run_folder import PACK, PROOF
from eval.proof.saved import load_proof
from eval.welch import moments
from trainer.recipe import RECIPE
from trainer.run.log import LOG

TEXT = "text.upz"
"""The archive of a proof, in a run folder (`underpar prove --keep RUN/text.upz`) and in a submission."""

RECORD_TRACK, OTHER_TRACK = "10min_16mb", "non_record_16mb"


@dataclass(frozen=True)
class Run:
    """A run folder whose pack has been proved, with the figures that were reproduced.

    Attributes:
        blob: the pack.
        archive: the archive of the text, coded with the pack.
        figures: of `artifacts.submission.evaluate.reproduce`, computed here; no figure is taken from the run's files.
        seed: the seed of its recipe, or the run's number if the folder has no recipe.
    """

    folder: Path
    blob: bytes
    archive: bytes
    figures: dict[str, Any]
    seed: int

    @property
    def bpb(self) -> float:
        """Return the bits really written over canonical bytes, the challenge's denominator."""
        return float(self.figures["bpb_canonical"])

    @property
    def loss(self) -> float:
        """Return the nats really written for each token that the model coded, ends of documents included."""
        return float(self.figures["val_loss"])


@dataclass(frozen=True)
class Author:
    """The author of a submission."""

    name: str
    github: str


def submit(
    folders: Sequence[Path],
    output: Path,
    name: str,
    author: Author,
    record: Record | None = None,
    day: date | None = None,
) -> dict[str, Any]:
    """Write the submission folder `output`, whole or not at all.

    Args:
        folders: run folders, one for each seed; the pack of the first is submitted.
        output: the folder to make.
        name: of the submission.
        author: of the submission.
        record: the record that the submission claims to beat; by default the submission claims no record.
        day: of the submission; by default today.

    Returns:
        The content of submission.json.

    Raises:
        CodecError: `output` exists, or a run lacks a pack, a proof that holds, or the archive of that proof.
        CheckFailed: the folder has more bytes than the challenge allows, or the figures do not beat `record`.
    """
    runs = [load_run(folder, number) for number, folder in enumerate(folders)]
    _check_runs(runs)
    comparison = None
    if record:
        comparison = compare([run.bpb for run in runs], record)
        if reasons := refusals(comparison, len(runs), runs[0].figures["canonical_bytes"], record):
            raise CheckFailed(f"no record: {'; '.join(reasons)}; submit without --record to claim none")
    with new_folder(output) as folder:
        (folder / PACK).write_bytes(runs[0].blob)
        (folder / TEXT).write_bytes(runs[0].archive)
        _write_json(folder / PROOF, runs[0].figures)
        _copy_code(runs[0].folder, folder)
        _copy_logs(runs, folder)
        counted = folder_ledger(folder)
        if not counted.total("challenge").fits:
            raise CheckFailed(
                f"{counted.total('challenge').peak_bytes:,} bytes count toward {LIMIT:,}; pack with a smaller --budget"
            )
        result = _submission(runs, name, author, counted, record, comparison, day or date.today())
        _write_json(folder / "submission.json", result)
        (folder / "README.md").write_text(readme(result))
        write_sums(folder)
    return result


def load_run(folder: Path, number: int = 0) -> Run:
    """Read a run folder with a pack, a proof and its text, and reproduce all that the proof states of them.

    Raises:
        CodecError: the pack, proof or text is missing or belongs to another pack, or the proof does not hold.
        CheckFailed: the proof states a figure that is not reproduced.
    """
    how = f"underpar prove {folder / PACK} --docs TEXT --save {folder} --keep {folder / TEXT}"
    evidence = load_proof(folder)
    if evidence is None:
        raise FormatError(f"run {folder}: no proof in it; make one with `{how}`")
    blob = read_bytes(folder / PACK, "pack")
    if evidence.pack_sha256 != hashlib.sha256(blob).hexdigest():
        raise MismatchError(f"run {folder}: its proof is of another pack; prove again with `{how}`")
    if evidence.proof.get("ok") is not True:
        raise CodecError(f"run {folder}: its proof does not hold; only a score that decodes can be submitted")
    if not (folder / TEXT).exists():
        raise FormatError(f"run {folder}: {TEXT} is missing, which reproduces the score; make {TEXT} with `{how}`")
    seed = number
    if (folder / RECIPE).exists():
        try:
            seed = int(json.loads(read_bytes(folder / RECIPE, "recipe"))["train"]["seed"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"recipe {folder / RECIPE}: not what underpar writes ({error!r})") from error
    archive = read_bytes(folder / TEXT, "archive")
    found = evaluate.reproduce(blob, archive)
    stated = {**evidence.proof, "val_loss": found.figures["val_loss"]}  # a proof states no val_loss
    if wrong := evaluate.differences(stated, found.figures):
        raise CheckFailed(f"run {folder}: its proof is not of its {TEXT}: {'; '.join(wrong)}; prove again with `{how}`")
    if not found.same_bytes:
        raise CheckFailed(f"run {folder}: coding the documents of {TEXT} again gives other bytes; prove with `{how}`")
    return Run(folder, blob, archive, found.figures, seed)


def _check_runs(runs: Sequence[Run]) -> None:
    if len({run.seed for run in runs}) != len(runs):
        raise MismatchError(f"runs of seeds {[run.seed for run in runs]}: expected a different seed each")
    if len({run.blob for run in runs}) != len(runs):
        raise MismatchError(f"two of the {len(runs)} runs have the same pack; a run of another seed has another pack")
    texts = {run.figures["sha256"] for run in runs}
    if len(texts) != 1:
        raise MismatchError(f"the {len(runs)} runs were proved on {len(texts)} different texts; prove all on one text")


def _copy_code(run: Path, folder: Path) -> None:
    """Copy the scripts, the source that they import and its requirements; with a recipe, the training files too."""
    roots: tuple[str, ...] = minify.DECODER
    here = Path(__file__).parent
    shutil.copy(here / "evaluate.py", folder / "evaluate.py")
    if (run / RECIPE).exists():
        roots += minify.TRAINER
        shutil.copy(here / "retrain.py", folder / "train_gpt.py")
        shutil.copy(run / RECIPE, folder / RECIPE)
    for name, source in minify.sources(roots).items():
        path = folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in minify.requirements(roots)))
    for entry in provenance.load_provenance(run):
        shutil.copy(run / provenance.FILE, folder / provenance.FILE)
        if (run / entry.path).is_file():
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / entry.path, folder / entry.path)


def _copy_logs(runs: Sequence[Run], folder: Path) -> None:
    for run in runs:
        if (run.folder / LOG).exists():
            shutil.copy(run.folder / LOG, folder / f"train_seed{run.seed}.log")


def _submission(
    runs: Sequence[Run],
    name: str,
    author: Author,
    counted: Ledger,
    record: Record | None,
    comparison: Comparison | None,
    day: date,
) -> dict[str, Any]:
    """Make the content of submission.json: the challenge's fields, then this project's fields."""
    mean, variance = moments([run.bpb for run in runs])
    result: dict[str, Any] = {
        "author": author.name,
        "github_id": author.github,
        "name": name,
        "blurb": f"{name}: really coded and decoded again; evaluate.py reproduces it from this folder alone.",
        "date": day.isoformat(),
        "track": RECORD_TRACK if record else OTHER_TRACK,
        "val_loss": runs[0].loss,
        "val_bpb": mean,
        "val_bpb_std": math.sqrt(variance),
        "seeds": [run.seed for run in runs],
        "seed_results": {
            str(run.seed): {"val_loss": run.loss, "val_bpb": run.bpb, "artifact_bytes": len(run.blob)} for run in runs
        },
        "bytes_total": counted.total("challenge").bytes,
        "bytes_code": counted.by_role()["code"],
        "bytes_model": counted.by_role()["model"],
        "ledger": {"limit": LIMIT, "totals": {"challenge": counted.to_json()["totals"]["challenge"]}},
        "proof": runs[0].figures,
        "trained_here": any(entry.path == RECIPE for entry in counted.entries),
        "record": None,
    }
    if record and comparison:
        result["record"] = {**asdict(record), **asdict(comparison)}
    return result


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")
