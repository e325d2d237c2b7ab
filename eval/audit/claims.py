"""Read a claim from its `claim.toml`: a score, the predictor behind it, the text, and how the author counted.

`eval.audit.predictor` documents the file for authors of claims.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError, MismatchError
from codec.files import read_bytes
from codec.model.tokenizer import Tokenizer
from codec.run_folder import PACK
from eval.audit.rows import Alphabet, Bytes260, Layout, Row, known_tokens, lay, stream_of
from eval.audit.sandbox import Program
from eval.score.streams import COMPRESSED_SHARD, documents_of, token_stream
from trainer.data.documents import document_files, read_documents

FILE = "claim.toml"

MAX_CLAIM = 1 << 20
"""The most bytes of a claim.toml."""

BATCH = 16

KEYS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "": {
        "claimed_bpb": (int, float),
        "predictor": str,
        "files": list,
        "tokenizer": str,
        "batch": int,
        "text": dict,
        "scored": dict,
    },
    "text": {"path": str, "documents": int, "layout": str, "window": int, "targets": int},
    "scored": {
        "tokens": str,
        "order": str,
        "ends": str,
        "side_bits": (int, float),
        "documents": int,
        "byte_table": str,
        "text_bytes": int,
    },
}
"""The keys that a claim may have, by table."""

_HELP = "`underpar audit --help` shows a whole claim.toml"


@dataclass(frozen=True)
class Claim:
    """A claim with the contents of its files. Rows and documents are in the order of the text.

    Attributes:
        documents: the text; None if only tokens are given.
        original: True if `documents` are the text itself; False if they are decoded from the tokens of a shard.
        tokens: of each document, without BOS; empty if `documents` is None.
        row_bytes: the bytes of the text that each row stands for, int64 [rows].
        order: numbers of the rows in the order in which they are scored, int64 [rows].
        side_bits: bits of side information that the claim charges itself.
        scored: number of rows that the author scored.
        left_out: tokens of the text that no row holds.
        part: the keys that limit the claim to a part of the file; empty if the claim is about the whole file.
        byte_table: bytes that the author counts for each token, float64 [V].
        counted_bytes: bytes that the author divides by.
        tokenizer_bytes: the size of the tokenizer's file.
    """

    name: str
    claimed_bpb: float
    program: Program
    alphabet: Alphabet
    batch: int
    layout: Layout
    rows: list[Row]
    documents: list[bytes] | None
    original: bool
    tokens: list[NDArray[np.int64]]
    row_bytes: NDArray[np.int64]
    order: NDArray[np.int64]
    side_bits: float
    scored: int
    left_out: int
    part: str
    byte_table: NDArray[np.float64] | None
    counted_bytes: float | None
    tokenizer_bytes: int

    @property
    def flat(self) -> bool:
        return self.layout.flat

    @property
    def ends_coded(self) -> bool:
        return self.layout.ends_coded

    @property
    def text_bytes(self) -> int:
        """Return the bytes of the text that all rows stand for."""
        return int(self.row_bytes.sum())

    def real_bytes(self, row: int) -> int:
        """Return the bytes of a row's text, never more than its documents have."""
        return int(self.row_bytes[row])

    def decoded(self, document: int) -> bytes:
        """Decode the tokens of a document to canonical bytes."""
        return self.alphabet.decode(self.tokens[document])


def load_claim(path: str | Path) -> Claim:
    """Read a claim from a `claim.toml` or its folder, without running the claim's code.

    Raises:
        FormatError: a file is missing or damaged, or a key is unknown, missing or of the wrong type.
        MismatchError: two of the files do not belong together.
    """
    path = _claim_file(Path(path))
    values = _read(path)
    folder, text, scored = path.parent, values["text"], values.get("scored", {})
    module = values["predictor"].partition(":")[0]
    files = [folder / module, *(folder / str(name) for name in values.get("files", []))]
    for file in files:
        if not file.is_file():
            raise FormatError(
                f"{path}: there is no file {file}; `predictor` is FILE.py:FACTORY, `files` lists all that it reads"
            )
    alphabet = _alphabet(folder, values["tokenizer"])
    source = folder / text["path"]
    hidden = [source]
    flat = text.get("layout", "documents") == "flat"
    layout = Layout(flat, text.get("window", 1024), not flat and scored.get("ends", "coded") == "coded")
    original = not any(file.name.endswith((".bin", COMPRESSED_SHARD)) for file in shown_files(source))
    documents: list[bytes] | None = None
    tokens: list[NDArray[np.int64]] = []
    if flat and not original:
        stream = token_stream(source, _sentencepiece(alphabet), text.get("targets", 1 << 62) + 1).astype(np.int64)
        sizes = alphabet.token_lengths[known_tokens(stream, alphabet)]
    else:
        documents = _documents(path, source, alphabet, text)
        if "tokens" in scored:
            hidden.append(folder / scored["tokens"])
            tokens = [t.astype(np.int64) for t in documents_of(token_stream(hidden[-1], _sentencepiece(alphabet)))]
            if len(tokens) != len(documents):
                raise MismatchError(
                    f"{path}: {len(tokens)} documents of tokens for {len(documents)} of text; name tokens of this text"
                )
        else:
            tokens = [alphabet.encode(document).astype(np.int64) for document in documents]
        stream, sizes = stream_of(alphabet, documents, tokens)
    if "targets" in text:
        stream, sizes = _first_targets(path, stream, sizes, text["targets"], layout)
    rows, row_bytes, left_out = lay(layout, stream, sizes)
    if not any(len(row.targets) for row in rows):
        raise FormatError(f"{path}: no token to score in {source}; name a text, or a flat stream of a row or more")
    order = _order(folder, scored.get("order"), rows)
    counted: float | None = scored.get("text_bytes")
    table = _byte_table(folder, scored["byte_table"], alphabet) if "byte_table" in scored else None
    count = scored.get("documents", len(rows))
    if count > len(rows):
        raise MismatchError(
            f"{path}: [scored] documents = {count}, but the text has {len(rows)}; state the number that was scored"
        )
    if counted is None and table is not None:
        counted = float(sum(table[rows[row].targets].sum() for row in order[:count]))
    return Claim(
        name=path.parent.resolve().name,
        claimed_bpb=float(values["claimed_bpb"]),
        program=Program(f"{Path(module).name}:{values['predictor'].partition(':')[2]}", files, hidden),
        alphabet=alphabet,
        batch=values.get("batch", BATCH),
        layout=layout,
        rows=rows,
        documents=documents,
        original=original,
        tokens=tokens,
        row_bytes=row_bytes,
        order=order,
        side_bits=float(scored.get("side_bits", 0)),
        scored=count,
        left_out=left_out,
        part=", ".join(f"{name} = {text[name]}" for name in ("documents", "targets") if name in text),
        byte_table=table,
        counted_bytes=counted,
        tokenizer_bytes=len(alphabet.model) if isinstance(alphabet, Tokenizer) else 0,
    )


def on_text(claim: Claim, path: Path) -> Claim:
    """Make a claim of the same predictor about another text, in the order of that text.

    Raises:
        FormatError: there is no text, or `path` holds token shards, which are text only under one tokenizer.
        MismatchError: a document is in the claim's own text.
    """
    if any(file.name.endswith((".bin", COMPRESSED_SHARD)) for file in shown_files(path)):
        raise FormatError(f"{path}: token shards; pass the text itself, which no tokenizer has changed")
    documents = list(read_documents(path))
    if known := set(documents) & set(claim.documents or []) - {b""}:
        raise MismatchError(f"{path}: {len(known)} of its documents are in the claim's text; pass a text without them")
    tokens = [claim.alphabet.encode(document).astype(np.int64) for document in documents]
    rows, row_bytes, left_out = lay(claim.layout, *stream_of(claim.alphabet, documents, tokens))
    if not row_bytes.sum():
        raise FormatError(f"{path}: no text to score; pass a text of a row or more")
    return replace(
        claim,
        program=replace(claim.program, hidden=[*claim.program.hidden, path]),
        rows=rows,
        documents=documents,
        original=True,
        tokens=tokens,
        row_bytes=row_bytes,
        order=np.arange(len(rows)),
        scored=len(rows),
        left_out=left_out,
        byte_table=None,
        counted_bytes=None,
    )


def shown_files(path: Path) -> list[Path]:
    """List the files of a text: `path` itself, or the files in the folder."""
    return [path] if path.is_file() else document_files(path)


def _claim_file(path: Path) -> Path:
    """Return the claim.toml of a folder, or `path` itself. Raises FormatError for a folder without one."""
    if not path.is_dir() or (path / FILE).exists():
        return path / FILE if path.is_dir() else path
    if (path / "submission.json").is_file() and (path / "evaluate.py").is_file():
        how = (
            f"it is a submission, which brings its own check: `python {path / 'evaluate.py'}` decodes the text and "
            f"compares every stated figure, `underpar ledger {path} --evaluate` counts its bytes"
        )
    elif (path / PACK).is_file():
        how = f"it is a run folder: `underpar prove {path / PACK} --docs TEXT` codes and decodes a text with its pack"
    else:
        how = f"pass a folder with one, or a claim.toml; {_HELP}"
    raise FormatError(f"{path}: no {FILE} is in this folder; {how}")


def _documents(path: Path, source: Path, alphabet: Alphabet, text: Mapping[str, Any]) -> list[bytes]:
    """Read the documents of a text: as many as the claim states, and for a flat stream as many as its targets need."""
    wanted, left = text.get("documents"), text.get("targets", math.inf)
    documents: list[bytes] = []
    for document in islice(read_documents(source, _sentencepiece(alphabet)), wanted):
        documents.append(document)
        left -= 1 + len(alphabet.encode(document)) if left < math.inf else 0
        if left < 0:
            break
    if wanted is not None and left >= 0 and len(documents) < wanted:
        raise MismatchError(f"{path}: [text] documents = {wanted}, but {source} has {len(documents)}")
    return documents


def _first_targets(
    path: Path, stream: NDArray[np.int64], sizes: NDArray[np.int64], targets: int, layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut a stream and its sizes to `targets` targets. Raises MismatchError if the stream has fewer."""
    if not layout.flat or targets % layout.window or targets >= len(stream):
        raise MismatchError(
            f"{path}: targets = {targets}, but the stream has {max(0, len(stream) - 1)} in rows of {layout.window}; "
            'with layout = "flat" state a multiple of window, at most the length of the stream'
        )
    return stream[: targets + 1], sizes[: targets + 1]


def _read(path: Path) -> dict[str, Any]:
    raw = read_bytes(path, "claim")
    if len(raw) > MAX_CLAIM:
        raise FormatError(f"{path}: {len(raw):,} bytes, expected at most {MAX_CLAIM:,}; put data into files of its own")
    try:
        values = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(f"{path}: not TOML ({error}); {_HELP}") from error
    for table, keys in KEYS.items():
        found = values.get(table, {}) if table else values
        where = f"in [{table}]" if table else "above the tables"
        for key, value in found.items():
            if key not in keys:
                raise FormatError(f"{path}: unknown key {key!r} {where}, known are {', '.join(keys)}; {_HELP}")
            if not isinstance(value, keys[key]) or isinstance(value, bool):
                raise FormatError(f"{path}: {key} {where} is {value!r}, of the wrong type; {_HELP}")
            if isinstance(value, int) and value < (0 if key == "side_bits" else 1):
                raise FormatError(f"{path}: {key} is {value}; give a number above 0")
    for table, key in (("", "claimed_bpb"), ("", "predictor"), ("", "tokenizer"), ("", "text"), ("text", "path")):
        if key not in (values[table] if table else values):
            raise FormatError(f"{path}: {key} is missing{f' in [{table}]' if table else ''}; {_HELP}")
    if not math.isfinite(values["claimed_bpb"]):
        raise FormatError(f"{path}: claimed_bpb is {values['claimed_bpb']}; give a finite number")
    for table, key, allowed in (("text", "layout", ("documents", "flat")), ("scored", "ends", ("coded", "given"))):
        if values.get(table, {}).get(key, allowed[0]) not in allowed:
            raise FormatError(f"{path}: {key} is {values[table][key]!r}, expected one of {list(allowed)}")
    if not all(isinstance(name, str) for name in values.get("files", [])):
        raise FormatError(f"{path}: files is no list of names; {_HELP}")
    return values


def _alphabet(folder: Path, name: str) -> Alphabet:
    return Bytes260() if name == "byte260" else Tokenizer(read_bytes(folder / name, "tokenizer"))


def _sentencepiece(alphabet: Alphabet) -> Tokenizer:
    """Return the SentencePiece tokenizer that reads token shards; another alphabet gets the sample's."""
    if isinstance(alphabet, Tokenizer):
        return alphabet
    from trainer.data.sample import sp1024

    return sp1024()


def _order(folder: Path, name: str | None, rows: list[Row]) -> NDArray[np.int64]:
    lengths = np.array([len(row.targets) for row in rows], np.int64)
    if name is None:
        return np.arange(len(rows))
    if name in ("longest_first", "shortest_first"):
        return np.argsort(-lengths if name == "longest_first" else lengths, kind="stable")
    order = _json_numbers(folder / name, len(rows), "order")
    if sorted(order.tolist()) != list(range(len(rows))):
        raise FormatError(f"{folder / name}: not each of the numbers 0 to {len(rows) - 1} once")
    return order.astype(np.int64)


def _byte_table(folder: Path, name: str, alphabet: Alphabet) -> NDArray[np.float64]:
    return _json_numbers(folder / name, alphabet.vocab_size, "byte table")


def _json_numbers(path: Path, length: int, what: str) -> NDArray[np.float64]:
    try:
        values = np.array(json.loads(read_bytes(path, what)), np.float64)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: not a JSON list of numbers ({error})") from error
    if values.shape != (length,) or not np.isfinite(values).all():
        raise FormatError(f"{path}: shape {values.shape}, expected {length} finite numbers, one for each entry")
    return values
