"""Count the bytes of a pack or a submission folder toward 16,000,000 bytes, under named rules.

Every file is an entry with its size and SHA-256, so that anyone can recompute the sums (`du -b`). A set of rules only
chooses among entries. Where the challenge has never ruled, a total is two numbers, with the open question beside them.

- `challenge` counts code and model files, recognised by their names, anywhere in the folder.
- `strict` counts every file, whatever its name, since a script can read a model from a file named like a picture. With
  `evaluate`, the score's text is decoded in a private root without the documents: those then do not count.

Neither set of rules counts the libraries that a decoder imports. Under strict rules the coded text is an open question:
a decoder cannot do without the coded text, and only decoding (`evaluate.py`) shows that it holds nothing else.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from artifacts.provenance import TrainingOnly, check, load_provenance
from artifacts.submission.minify import sources
from artifacts.submission.script import run_script
from codec.archive.whole.description import describe
from codec.console import CheckFailed
from codec.errors import FormatError
from codec.files import read_bytes
from codec.pack.container import MAGIC, read_container

LIMIT = 16_000_000
"""The challenge's cap, in bytes."""

UNCHECKED = "the stated score was not checked, `python evaluate.py` in the folder checks it"
"""Words on what decoding the text alone leaves open."""

Role = Literal["code", "model", "tokenizer", "unknown", "text", "document", "unneeded", "training"]
"""Kinds of files, by name; `unneeded` is a document that the evaluation ran without."""

COUNTED: dict[str, tuple[Role, ...]] = {
    "challenge": ("code", "model"),
    "strict": ("code", "model", "tokenizer", "unknown", "document"),
}
"""The roles that count under each set of rules."""

_SUFFIXES: dict[Role, tuple[str, ...]] = {
    "code": (".py", ".pyc", ".sh", ".so", ".c", ".cc", ".cpp", ".cu", ".h", ".rs", ".js", ".pl"),
    "model": (".pack", ".ptz", ".pt", ".pth", ".safetensors", ".ckpt", ".npz", ".npy", ".br", ".xz", ".zst", ".lrz"),
    "tokenizer": (".model", ".vocab"),
    "document": (".md", ".log", ".txt", ".csv", ".tsv", ".png", ".svg", ".html", ".pdf"),
}
_DOCUMENTS = ("submission.json", "provenance.json", "proof.json", "recipe.json", "LICENSE", "SHA256SUMS", ".gitignore")


@dataclass(frozen=True)
class Entry:
    """A file. `path` is relative to the folder; `role` decides under which rules the file counts."""

    path: str
    role: Role
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Unsettled:
    """An open question on which a total depends; `bytes` is the number that the answer "yes" adds."""

    question: str
    bytes: int


@dataclass(frozen=True)
class Total:
    """The bytes that count under one set of rules; `peak_bytes` if every open question is answered "yes".

    `fits` is None if the answer depends on an open question.
    """

    rules: str
    bytes: int
    peak_bytes: int
    fits: bool | None
    unsettled: tuple[Unsettled, ...]


@dataclass(frozen=True)
class Ledger:
    """All entries, sorted by path, and the totals of all rules.

    Attributes:
        tokenizer_bytes: of the tokenizers inside packs.
        evaluation: what came of the evaluation without the documents; empty where none was asked for.
    """

    entries: tuple[Entry, ...]
    totals: tuple[Total, ...]
    tokenizer_bytes: int
    evaluation: str = ""

    def total(self, rules: str) -> Total:
        """Return the total under `rules`, a key of COUNTED."""
        return next(total for total in self.totals if total.rules == rules)

    def by_role(self) -> dict[str, int]:
        """Sum the bytes of each role that has files."""
        roles = dict.fromkeys(entry.role for entry in self.entries)
        return {role: sum(e.bytes for e in self.entries if e.role == role) for role in roles}

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as plain values."""
        return {
            "limit": LIMIT,
            "totals": {total.rules: {k: v for k, v in asdict(total).items() if k != "rules"} for total in self.totals},
            "roles": self.by_role(),
            "tokenizer_bytes_in_pack": self.tokenizer_bytes,
            "evaluation": self.evaluation,
            "entries": [asdict(entry) for entry in self.entries],
        }


def ledger(path: str | Path, evaluate: bool = False) -> Ledger:
    """Make the ledger of a pack, or of a submission folder.

    The ledger of a pack includes the source that decodes with the pack, minified as in a submission.

    Args:
        path: of the pack or the folder.
        evaluate: decode the folder's text without its documents (`decode_alone`), which do not count if that succeeds.

    Raises:
        FormatError: there is no such file or folder, the file is no pack, or the folder has a link, whose target the
            ledger could not count.
        MismatchError: a training-only file differs from its description in `provenance.json`.
    """
    path = Path(path)
    if path.is_dir():
        return folder_ledger(path, evaluate)
    blob = read_bytes(path, "pack or submission folder")
    tokenizer = _tokenizer_bytes(blob)
    entries = [Entry(path.name, "model", len(blob), hashlib.sha256(blob).hexdigest())]
    entries += [Entry(f"code/{n}", "code", len(s), hashlib.sha256(s).hexdigest()) for n, s in sources().items()]
    return Ledger(tuple(entries), tuple(_total(rules, entries, ()) for rules in COUNTED), tokenizer)


def folder_ledger(folder: Path, evaluate: bool = False) -> Ledger:
    """Make the ledger of a submission folder; see `ledger`."""
    listed = {entry.path: entry for entry in load_provenance(folder)}
    files = list(_files(folder))
    packs = {_measure(path)[1] for path in files if path.suffix == ".pack"}
    entries, tokenizer = [], 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        size, digest = _measure(path)
        if name in listed:
            check(listed[name], size, digest)
        role = "training" if name in listed else "text" if _is_text_of(path, packs) else role_of(name)
        entry = Entry(name, role, size, digest)
        if path.suffix == ".pack":
            tokenizer += _tokenizer_bytes(read_bytes(path, "pack"))
        entries.append(entry)
    evaluation = ""
    if evaluate:
        try:
            evaluation = f"the text was decoded without {decode_alone(folder, entries)} files; {UNCHECKED}"
            entries = [replace(e, role="unneeded") if e.role == "document" else e for e in entries]
        except (CheckFailed, FormatError) as error:
            evaluation = f"every file counts: {error}"
    totals = tuple(_total(rules, entries, tuple(listed.values())) for rules in COUNTED)
    return Ledger(tuple(entries), totals, tokenizer, evaluation)


def decode_alone(folder: Path, entries: Sequence[Entry]) -> int:
    """Run `evaluate.py --decode` with a private root, in which the folder's documents and training-only files are not.

    The output has to be the scored text itself, so a script has no use of knowing what is looked at: what is left of
    the folder has all that decoding the text takes.

    Returns:
        how many files were not there.

    Raises:
        FormatError: the folder states no digest of its text.
        CheckFailed: the script failed, or wrote something else than the scored text.
    """
    try:
        stated = json.loads(read_bytes(folder / "proof.json", "proof"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"proof {folder / 'proof.json'}: no digest of the scored text ({error!r})") from error
    kept = {e.path: folder / e.path for e in entries if e.role not in ("document", "training")}
    digest = hashlib.sha256()
    run_script(kept, ("evaluate.py", "--decode"), digest.update)
    if digest.hexdigest() != stated:
        raise CheckFailed(f"evaluate.py wrote a text of SHA-256 {digest.hexdigest()[:16]}…, proof.json says {stated}")
    return len(entries) - len(kept)


def role_of(name: str) -> Role:
    """Return the role of a file by its path in a submission folder, under the challenge's rules."""
    path = Path(name)
    if path.name in _DOCUMENTS or path.name.startswith(("README", "LICENSE")):
        return "document"
    return next((role for role, suffixes in _SUFFIXES.items() if path.suffix.lower() in suffixes), "unknown")


def _total(rules: str, entries: list[Entry], training: tuple[TrainingOnly, ...]) -> Total:
    final = sum(entry.bytes for entry in entries if entry.role in COUNTED[rules])
    unsettled = []
    if training:
        question = "Do files count that are deleted before anything is scored? (asked in the challenge's issue 847)"
        unsettled.append(Unsettled(question, sum(entry.bytes for entry in training)))
    unknown = sum(entry.bytes for entry in entries if entry.role == "unknown")
    if unknown and "unknown" not in COUNTED[rules]:
        unsettled.append(Unsettled("Are files of no known kind part of the model?", unknown))
    text = sum(entry.bytes for entry in entries if entry.role == "text")
    if text and rules == "strict":
        unsettled.append(Unsettled("Does the coded text hold anything but the text? (evaluate.py decodes it)", text))
    peak = final + sum(question.bytes for question in unsettled)
    fits = True if peak <= LIMIT else False if final > LIMIT else None
    return Total(rules, final, peak, fits, tuple(unsettled))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FormatError(f"submission {path}: not a plain file; put the file that it points to into the folder")
        if path.is_file():
            yield path


def _is_text_of(path: Path, packs: Collection[str]) -> bool:
    """Check by its content that a file is an archive of one of `packs` (hex SHA-256 of each)."""
    with path.open("rb") as stream:
        try:
            pack = describe(stream)["pack"]  # the first bytes of the SHA-256
            return pack is not None and any(known.startswith(pack) for known in packs)
        except FormatError:
            return False


def _measure(path: Path) -> tuple[int, str]:
    """Return the size and hex SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def _tokenizer_bytes(blob: bytes) -> int:
    """Return the bytes of a pack's tokenizer, which counts with the pack. Raises FormatError for no pack."""
    if not blob.startswith(MAGIC):
        raise FormatError(f"ledger: begins with {blob[:4]!r}, expected a pack ({MAGIC!r}) or a folder")
    return len(read_container(blob).get("tokenizer", b""))
