"""Reproduce the score of the submission in this script's folder: python evaluate.py [--documents N] [--docs TEXT.jsonl]

python evaluate.py --decode writes the documents alone, each behind its length (u64, little-endian), and reads neither
what the folder states nor any page of it: a ledger runs this to see which files the score needs.

The script needs the libraries of requirements.txt and nothing else: no network, no text. text.upz holds the scored
documents, coded. The script decodes the documents with the model alone, codes them again to the same bytes, and divides
the bits by the bytes of the text. --documents takes the first N documents only, whose figures say nothing about the
claim. --docs compares the decoded documents with a text of yours ({"text"} lines).

The script prints one JSON object. `ok` is true and the exit status 0 if every figure of this pack that proof.json,
submission.json and README.md state was found again. With --documents `ok` and `as_stated` are null and the status is 1
if nothing was wrong: the claim was not checked. The packs of other seeds are not in the folder, and the JSON object
names them.

Most of a short run compiles the decoder. UNDERPAR_CACHE=FOLDER keeps the machine code for the next run.
"""

import argparse
import atexit
import hashlib
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

BATCH = 4096
"""Documents that are coded together; the number bounds memory."""


def say(line: str) -> None:
    """Tell people on stderr what the script does."""
    print(f"evaluate: {line}", file=sys.stderr, flush=True)


def check_files() -> None:
    """Check that every file of SHA256SUMS has its submitted bytes, and that no source file has been added."""
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    for name, digest in stated.items():
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"evaluate: {name} is not the file that was submitted")
    for path in HERE.rglob("*.py"):
        if path.relative_to(HERE).as_posix() not in stated:
            sys.exit(f"evaluate: {path} is not part of the submission")


def use_own_code() -> None:
    """Import the folder's code, whatever else is installed, and write no bytecode into the folder."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(HERE / "code"))
    if "UNDERPAR_CACHE" not in os.environ:
        say("compiling the decoder takes a minute, for this run alone; UNDERPAR_CACHE=FOLDER keeps the machine code")
        os.environ["UNDERPAR_CACHE"] = cache = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    import codec

    if not Path(codec.__file__).is_relative_to(HERE):
        sys.exit(f"evaluate: {codec.__file__} was imported in place of this folder's code")


@dataclass(frozen=True)
class Reproduced:
    """The decoded documents and their figures.

    Attributes:
        of: number of documents in the archive.
        same_bytes: False if coding the documents again changes the archive.
    """

    documents: list[bytes]
    of: int
    same_bytes: bool
    figures: dict[str, Any]


def reproduce(blob: bytes, archive: bytes, count: int | None = None) -> Reproduced:
    """Decode an archive with a pack, code the documents again under the archive's policy, and count.

    Args:
        blob: the pack.
        archive: an archive of documents.
        count: take the first `count` documents only; by default all.

    Returns:
        The documents and the figures of these documents in an archive of their own. Figures are in bytes; names with
        `bpb` are in bits per byte; `val_loss` is nats for each token that the model coded, ends of documents included.
    """
    import codec
    from codec.console import progress
    from codec.text.documents import MODELLED

    with progress("opening the pack", None):
        pack = codec.open(blob)
    reader = codec.ArchiveReader(BytesIO(archive), pack)
    of = len(reader)
    taken = of if count is None else min(count, of)
    part = f"{taken:,} of {of:,} documents"
    with progress(f"decoding {part}", int(reader.contents.lengths[:taken].sum()), "byte") as advance:
        documents = reader.decode(range(taken), advance)
    out, records = BytesIO(), []
    with (
        progress(f"coding {part} again", sum(map(len, documents)), "byte") as advance,
        codec.ArchiveWriter(out, pack, reader.policy) as writer,
    ):
        for at in range(0, taken, BATCH):
            records += writer.append(documents[at : at + BATCH], advance=advance)
    again = out.getvalue()
    end = None if taken == of else int(reader.contents.offsets[taken])
    modelled = [record for record in records if record.mode == MODELLED]
    payload, through = (sum(len(r.payload) for r in chosen) for chosen in (records, modelled))
    canonical, seen = (sum(r.canonical_bytes for r in chosen) for chosen in (records, modelled))
    text, tokens = sum(map(len, documents)), sum(r.tokens for r in records)
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little") + document)
    figures = {
        "documents": len(documents),
        "text_bytes": text,
        "canonical_bytes": canonical,
        "tokens": tokens,
        "adaptation": str(reader.policy.adaptation),
        "stored": len(records) - len(modelled),
        "stored_bytes": text - sum(record.text_bytes for record in modelled),
        "bpb_exact": sum(r.exact_bits for r in modelled) / max(1, seen),
        "bpb_ideal": sum(r.ideal_bits for r in modelled) / max(1, seen),
        "bpb_coded": 8 * through / max(1, seen),
        "bpb_canonical": 8 * payload / max(1, canonical),
        "bpb_raw": 8 * len(again) / max(1, text),
        "val_loss": 8 * through * math.log(2) / max(1, tokens),
        "payload_bytes": payload,
        "framing_bytes": len(again) - payload,
        "archive_bytes": len(again),
        "pack_bytes": len(blob),
        "sha256": digest.hexdigest(),
    }
    return Reproduced(documents, of, again[:end] == archive[:end], figures)


def write_documents(blob: bytes, archive: bytes) -> None:
    """Decode an archive and write to standard output what the digest of `Reproduced.figures` is made of."""
    import codec

    for document in codec.ArchiveReader(BytesIO(archive), codec.open(blob)).iterate():
        sys.stdout.buffer.write(len(document).to_bytes(8, "little") + document)
    sys.stdout.flush()


def differences(stated: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """List the figures of `found` that are stated otherwise or not at all; floats may differ in their last digits."""
    wrong = []
    for name, value in found.items():
        told = stated.get(name)
        if isinstance(told, Mapping) and isinstance(value, Mapping) and set(told) == set(value):
            wrong += [f"{name}: {line}" for line in differences(told, value)]
            continue
        near = isinstance(told, float) and isinstance(value, float) and math.isclose(told, value, rel_tol=1e-9)
        if not near and told != value:
            wrong.append(f"{name}: {told} stated, {value} found")
    return wrong


def restate(submission: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Make the entries that submission.json must state, from `found` and file sizes; other seeds' scores are kept."""
    results = submission["seed_results"]
    first = str(submission["seeds"][0])
    own = {"val_loss": found["val_loss"], "val_bpb": found["bpb_canonical"], "artifact_bytes": found["pack_bytes"]}
    scores = [result["val_bpb"] for result in {**results, first: own}.values()]
    code = sum(path.stat().st_size for path in HERE.rglob("*.py"))
    return {
        "proof": dict(found),
        "seed_results": {**results, first: own},
        "val_loss": found["val_loss"],
        "val_bpb": statistics.fmean(scores),
        "val_bpb_std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "bytes_code": code,
        "bytes_model": found["pack_bytes"],
        "bytes_total": code + found["pack_bytes"],
    }


def evaluate(count: int | None, docs: Path | None) -> dict[str, object]:
    """Reproduce the score and compare it with every figure that the folder states.

    A part of the documents says nothing about figures of all of them. Then the stated figures have to agree with each
    other and with the files' sizes, and `as_stated` is None if they do.
    """
    begin = time.perf_counter()
    blob, archive = (HERE / "model.pack").read_bytes(), (HERE / "text.upz").read_bytes()
    found = reproduce(blob, archive, count)
    submission = json.loads((HERE / "submission.json").read_bytes())
    proof = json.loads((HERE / "proof.json").read_bytes())
    checks: dict[str, bool | None] = {"coded_again_to_the_same_bytes": found.same_bytes}
    if docs:
        with docs.open("rb") as lines:
            texts = [json.loads(line)["text"].encode() for line in islice(lines, len(found.documents))]
        checks["decoded_is_your_text"] = found.documents == texts
    whole = len(found.documents) == found.of
    sizes = {"documents": found.of, "pack_bytes": len(blob), "archive_bytes": len(archive)}
    known = found.figures if whole else {n: proof.get(n, v) for n, v in found.figures.items()} | sizes
    wrong = differences(proof, known)
    wrong += [f"{name}: stated, not reproduced" for name in proof if name not in known]
    wrong += [f"submission.json, {line}" for line in differences(submission, restate(submission, known))]
    score = f"**{submission['val_bpb']:.5f} bits per byte**"
    wrong += [] if score in (HERE / "README.md").read_text() else [f"README.md: {score} is not in it"]
    checks["as_stated"] = False if wrong else True if whole else None
    held = list(checks.values())
    alone = f"the first {len(found.documents):,} documents alone; the claim is about {found.of:,}"
    others = [f"score of seed {seed}" for seed in submission["seeds"][1:]]
    return {
        "ok": False if False in held else None if None in held else True,
        "claim": "checked" if whole else f"not checked: {alone}",
        "whole": whole,
        "of": found.of,
        **found.figures,
        "val_bpb": found.figures["bpb_canonical"],
        "stated_bpb": proof["bpb_canonical"],
        "checks": checks,
        "differences": wrong,
        "not_in_this_folder": [*others, *(["the record that it is compared with"] if submission["record"] else [])],
        "seconds": time.perf_counter() - begin,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run the script with these arguments, by default those of the command line."""
    parser = argparse.ArgumentParser(description="Reproduce the score of this submission.")
    parser.add_argument("--documents", type=int, help="take only the first N documents")
    parser.add_argument("--docs", type=Path, help="JSON Lines to compare with the decoded documents")
    parser.add_argument("--decode", action="store_true", help="write the documents alone")
    arguments = parser.parse_args(words)
    if arguments.documents is not None and arguments.documents < 1:
        parser.error(f"--documents {arguments.documents}: expected 1 or more; leave it out to take all")
    if arguments.decode:
        use_own_code()
        write_documents((HERE / "model.pack").read_bytes(), (HERE / "text.upz").read_bytes())
        sys.exit()
    check_files()
    say("every file has its submitted bytes; decoding text.upz with model.pack and the code of this folder alone")
    use_own_code()
    result = evaluate(arguments.documents, arguments.docs)
    print(json.dumps(result))
    if result["ok"] is None:
        say(f"the claim was {result['claim']}; leave out --documents to check the claim")
    sys.exit(not result["ok"])


if __name__ == "__main__":
    main()
