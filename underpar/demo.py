"""The demo: the whole loop on the sample that ships. Prove the shipped pack, train a model, pack it, prove it, report.

Two slow cores and six minutes are enough. The time of the second proof is forecast from the first. Training gets the
time that is left, up to the length in its recipe; the proofs are never shortened.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import codec
from codec.archive.writer import ArchiveWriter
from codec.console import notes, progress
from codec.files import atomic_write, new_folder
from codec.model.checkpoint import load_checkpoint
from codec.model.config import ModelConfig
from codec.model.parameters import parameters as tensors_of
from codec.pack.reader import Pack
from eval.bench.compressors import baseline_sizes
from eval.proof.prove import Proof, prove
from eval.proof.report import report
from eval.proof.saved import save_proof
from trainer.recipe import Recipe
from trainer.run.loop import train

RESULT, REPORT = "demo.json", "report.html"
"""Files of a demo beside the files of its run. A folder without RESULT is no demo's and is never replaced."""

LEAST_TRAINING = 20.0
"""Least seconds of training on any machine."""

MARGIN, OVERHEAD = 1.3, 25.0
"""Safety factor of a forecast, and seconds for tokenizing, packing and the report."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a demo. The longest documents are left out: decoding one takes as long as all others together."""

    first_bytes: int = 20_000  # of text for the shipped pack
    first_longest: int = 2_000
    proof_bytes: int = 204_800  # of text for the pack that is trained
    proof_longest: int = 6_500
    seconds: float = 345.0  # for all of it; six minutes less the start of Python


@dataclass(frozen=True)
class Row:
    """A line of the closing table, in bytes; `model_bytes` are needed for decoding beside the coded text."""

    name: str
    coded_bytes: int
    model_bytes: int


@dataclass(frozen=True)
class Demo:
    """The results of a demo; `phases` are seconds."""

    folder: Path
    shipped: Proof
    trained: Proof
    table: list[Row]
    phases: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        text = self.trained.text_bytes
        return {
            "ok": self.shipped.ok and self.trained.ok,
            "seconds": sum(self.phases.values()),
            "phases": self.phases,
            "report": str(self.folder / REPORT),
            "text_bytes": text,
            "table": [
                {
                    "name": row.name,
                    "coded_bytes": row.coded_bytes,
                    "bits_per_byte": 8 * row.coded_bytes / text,
                    "with_model_bytes": row.coded_bytes + row.model_bytes,
                }
                for row in self.table
            ],
            "shipped": self.shipped.to_json(),
            "trained": self.trained.to_json(),
        }


def demo(folder: Path, shipped: bytes, recipe: Recipe, validation: Iterable[bytes], plan: Plan | None = None) -> Demo:
    """Run the demo; `folder` appears when all is done, and replaces an earlier demo only then.

    Args:
        folder: of the run, its proof and its report.
        shipped: the pack that is proved first.
        recipe: of the training; `train.seconds` may be lowered.
        validation: documents from which the text of both proofs is chosen.
        plan: the sizes; None: the defaults.

    Raises:
        CodecError: `folder` exists and no demo made it.
        KeyboardInterrupt: training was interrupted.
    """
    plan, documents = plan or Plan(), list(validation)
    phases: dict[str, float] = {}
    timed = _stopwatch(phases)
    opened = codec.open(shipped)
    with new_folder(folder, replaces=RESULT) as run:
        with timed("compile"):
            warm_up(opened, max(choose(documents, plan.first_bytes, plan.first_longest), key=len))
        with timed("shipped_proof"):
            first_documents = choose(documents, plan.first_bytes, plan.first_longest)
            first = prove(shipped, first_documents)
            for line in first_words(first, baseline_sizes(first_documents)):
                _say(line)
        with timed("training"):
            texts = choose(documents, plan.proof_bytes, plan.proof_longest)
            ahead = forecast(first, opened.parameter_count, recipe.model, sum(map(len, texts)))
            recipe = shorten(recipe, plan.seconds - sum(phases.values()) - ahead)
            _say(f"\nTraining a model of your own for {recipe.train.seconds:.0f} seconds:")
            if train(recipe, run).interrupted:
                raise KeyboardInterrupt
        with timed("pack"):
            checkpoint = load_checkpoint(run)
            blob = codec.compress(checkpoint.state_dict, checkpoint.config, checkpoint.tokenizer)
            own = codec.open(blob)
        with timed("proof"):
            _say(f"\nProving it on {len(texts)} web pages, {sum(map(len, texts)):,} bytes.")
            trained = prove(blob, texts)
        with timed("shipped_encode"):
            beside = archive_bytes(opened, texts)
        with timed("report"):
            evidence = save_proof(run, blob, own, texts, trained)
            _write(run / REPORT, report(run, folder.name))
        rows = [
            Row(f"your pack, {own.parameter_count / 1e6:.1f} M parameters", trained.archive_bytes, own.size),
            Row(f"the shipped pack, {opened.parameter_count / 1e6:.1f} M parameters", beside, opened.size),
            *(Row(name, size, 0) for name, size in evidence.peers.items()),
        ]
        rows.sort(key=lambda row: row.coded_bytes)
        result = Demo(folder, first, trained, rows, phases)
        _write(run / RESULT, json.dumps(result.to_json(), indent=1))
    return result


def warm_up(pack: Pack, document: bytes) -> None:
    """Encode and decode a document, which compiles the coder; compiled code stays on disk."""
    with progress("compiling, only the first time", 2) as advance:
        packed = codec.encode(pack, [document])
        advance(1)
        codec.decode(pack, packed)


def choose(documents: Iterable[bytes], size: int, longest: int) -> list[bytes]:
    """Return the first documents of at most `longest` bytes that have `size` bytes together, or all such documents."""
    chosen: list[bytes] = []
    for document in documents:
        if sum(map(len, chosen)) >= size:
            break
        if len(document) <= longest:
            chosen.append(document)
    return chosen


def first_words(proof: Proof, baselines: Mapping[str, int]) -> tuple[str, str]:
    """Return two lines on the proof of the shipped pack, for readers who have never seen a proof."""
    if not proof.ok:
        return "The shipped pack did not restore the text.", "This should not happen: please report it."
    name, size = min(baselines.items(), key=lambda item: item[1])
    return (
        f"{proof.documents} web pages, {proof.text_bytes:,} bytes, were coded to {proof.archive_bytes:,} bytes with a "
        "language model's predictions, and a fresh process decoded them: every byte is the same.",
        f"{name} needs {size:,} bytes, gzip -9 {baselines['gzip -9']:,}. A better model writes fewer: "
        f"that is its score in bits per byte, here {proof.bpb_coded:.3f}, and these bits were really written.",
    )


def forecast(first: Proof, parameters: int, model: ModelConfig, size: int) -> float:
    """Return the seconds of everything but training, after the proof `first` of a pack of so many parameters.

    A model's time is taken to grow with its parameters, and a text's time with its bytes.
    """
    weights = sum(prod(p.shape) for p in tensors_of(model).values() if p.role != "hash")
    share = size / max(1, first.text_bytes)
    own = (first.encode_seconds + first.decode_seconds) * share * weights / parameters
    return MARGIN * (own + first.encode_seconds * share) + OVERHEAD


def shorten(recipe: Recipe, seconds: float) -> Recipe:
    """Return the recipe with at most `seconds` of training, but at least LEAST_TRAINING if it asks for so much."""
    wanted = recipe.train.seconds
    return replace(recipe, train=replace(recipe.train, seconds=min(wanted, max(LEAST_TRAINING, seconds))))


def archive_bytes(pack: Pack, documents: Sequence[bytes]) -> int:
    """Return the size of the archive of documents under a pack."""
    stream = BytesIO()
    with (
        progress("encoding with the shipped pack", sum(map(len, documents)), "byte") as advance,
        ArchiveWriter(stream, pack) as writer,
    ):
        writer.append(documents, advance=advance)
    return len(stream.getvalue())


def _stopwatch(phases: dict[str, float]) -> Callable[[str], AbstractContextManager[None]]:
    """Return a context manager that writes the seconds of its block into `phases`."""

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        phases[name] = time.perf_counter() - begin

    return timed


def _say(line: str) -> None:
    notes.print(line)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
