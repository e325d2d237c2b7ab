"""Reproduces the score of the submission beside which it lies: python evaluate.py [--documents N] [--docs TEXT.jsonl]

It needs the libraries of requirements.txt and nothing else: no network, no text. text.upz holds the scored documents,
coded; this decodes them with the model alone, codes them again to the same bytes, and divides those bits by the bytes
of the text. --documents takes only the first N; --docs compares what was decoded with a text of yours ({"text"} lines).
It prints one JSON object and ends with status 0 if all that proof.json states was found again.
"""

import argparse
import atexit
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from io import BytesIO
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent

BATCH = 4096
"""Documents that are coded together; it bounds memory."""


def check_files() -> None:
    """Every file that SHA256SUMS lists is the one that was submitted, and no source has been added."""
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    for name, digest in stated.items():
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"evaluate: {name} is not the file that was submitted")
    for path in HERE.rglob("*.py"):
        if path.relative_to(HERE).as_posix() not in stated:
            sys.exit(f"evaluate: {path} is not part of the submission")


def use_own_code() -> None:
    """Import the folder's code, whatever else is installed, and leave nothing behind in it."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(HERE / "code"))
    if "UNDERPAR_CACHE" not in os.environ:
        os.environ["UNDERPAR_CACHE"] = cache = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, cache, ignore_errors=True)


def evaluate(count: int | None, docs: Path | None) -> dict[str, object]:
    """Decode, compare, code again, count."""
    import codec

    if not Path(codec.__file__).is_relative_to(HERE):
        sys.exit(f"evaluate: {codec.__file__} was imported in place of this folder's code")
    begin = time.perf_counter()
    pack = codec.open((HERE / "model.pack").read_bytes())
    archive = (HERE / "text.upz").read_bytes()
    reader = codec.ArchiveReader(BytesIO(archive), pack)
    whole = count is None or count >= len(reader)
    documents = reader.decode(None if whole else range(count or 0))
    out = BytesIO()
    writer = codec.ArchiveWriter(out, pack)
    records = []
    for at in range(0, len(documents), BATCH):
        records += writer.append(documents[at : at + BATCH])
    writer.close()
    end = None if whole else reader.offsets[len(documents)]
    payload, canonical = sum(len(r.payload) for r in records), sum(r.canonical_bytes for r in records)
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little") + document)
    proof = json.loads((HERE / "proof.json").read_bytes())
    checks = {"coded_again_to_the_same_bytes": out.getvalue()[:end] == archive[:end]}
    if docs:
        with docs.open("rb") as lines:
            checks["decoded_is_your_text"] = documents == [
                json.loads(line)["text"].encode() for line in islice(lines, len(documents))
            ]
    found = {"payload_bytes": payload, "canonical_bytes": canonical, "archive_bytes": len(archive)}
    if whole:
        stated = {name: proof[name] for name in (*found, "sha256", "documents", "pack_bytes")}
        here = {**found, "sha256": digest.hexdigest(), "documents": len(documents), "pack_bytes": pack.size}
        checks["as_stated"] = stated == here
    return {
        "ok": all(checks.values()),
        "documents": len(documents),
        "of": len(reader),
        "text_bytes": sum(map(len, documents)),
        **found,
        "val_bpb": 8 * payload / max(1, canonical),
        "stated_bpb": proof["bpb_canonical"],
        "sha256": digest.hexdigest(),
        "checks": checks,
        "seconds": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Reproduce the score of this submission.")
    parser.add_argument("--documents", type=int, help="only the first so many")
    parser.add_argument("--docs", type=Path, help="JSON Lines to compare the decoded documents with")
    arguments = parser.parse_args()
    check_files()
    use_own_code()
    result = evaluate(arguments.documents, arguments.docs)
    print(json.dumps(result))
    sys.exit(not result["ok"])
