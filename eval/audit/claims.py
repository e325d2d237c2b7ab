"""A claim read from its `claim.toml`: a score, the predictor behind it, the text, and how the author counted.

`eval.audit.predictor` documents the file for those who write one.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError, MismatchError
from codec.files import read_bytes
from codec.model.tokenizer import BOS, Tokenizer
from eval.audit.sandbox import Program
from eval.score.streams import documents_of, token_stream
from eval.score.windows import flat_windows
from trainer.data.documents import read_documents

FILE = "claim.toml"

MAX_CLAIM = 1 << 20
"""Bytes of a claim.toml."""

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
"""What a claim may say, by table."""

_HELP = "`eval/audit/predictor.py` and `underpar audit --help` show a whole claim.toml"


class Alphabet(Protocol):
    """The tokens of a claim: how many there are and the bytes each stands for."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_bytes(self) -> list[bytes]: ...

    @property
    def token_lengths(self) -> NDArray[np.int64]: ...

    def decode(self, tokens: NDArray[np.integer]) -> bytes: ...

    def encode(self, document: bytes) -> NDArray[np.uint16]: ...


class Bytes260:
    """The challenge's byte tokenizer: pad, BOS, EOS, unknown, then the 256 bytes."""

    vocab_size = 260

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Empty for the four special tokens."""
        return [b""] * 4 + [bytes([i]) for i in range(256)]

    @cached_property
    def token_lengths(self) -> NDArray[np.int64]:
        """[V]: 1 for a byte."""
        return np.array([len(piece) for piece in self.token_bytes], np.int64)

    def decode(self, tokens: NDArray[np.integer]) -> bytes:
        """The bytes of token ids [T]."""
        return b"".join([self.token_bytes[token] for token in tokens.tolist()])

    def encode(self, document: bytes) -> NDArray[np.uint16]:
        """Token ids [T] of a document, without BOS."""
        return np.frombuffer(document, np.uint8).astype(np.uint16) + np.uint16(4)


@dataclass(frozen=True)
class Row:
    """What is coded as one sequence: a document with its end, or a row of a flat stream."""

    start: int  # the token before, which a decoder knows
    targets: NDArray[np.int64]  # [T]


@dataclass(frozen=True)
class Claim:
    """A claim with everything that its files say. Rows and documents are in the order of the text."""

    name: str
    claimed_bpb: float
    program: Program
    alphabet: Alphabet
    batch: int
    rows: list[Row]
    documents: list[bytes] | None  # the original text; None of a flat stream, which is given as tokens
    order: NDArray[np.int64]  # [rows], which row is scored when
    ends_coded: bool  # else a decoder must be told the lengths
    side_bits: float  # that the claim charges itself
    scored: int  # rows
    byte_table: NDArray[np.float64] | None  # [V], how the author counts
    counted_bytes: float | None  # that the author divides by

    @property
    def flat(self) -> bool:
        return self.documents is None

    def real_bytes(self, row: int) -> int:
        """Bytes of a row's text: what its tokens stand for, but never more than the document has."""
        decoded = int(self.alphabet.token_lengths[self.rows[row].targets].sum())
        return decoded if self.documents is None else min(decoded, len(self.documents[row]))

    def decoded(self, row: int) -> bytes:
        """The text that the tokens of a row stand for."""
        return self.alphabet.decode(self.rows[row].targets)


def load_claim(path: str | Path) -> Claim:
    """Read a claim: a `claim.toml` or the folder it is in. Nothing of the claim's code runs here.

    Raises:
        FormatError: a file is missing or not what it should be, or a key is unknown, missing or of the wrong type.
        MismatchError: two of the files do not belong together.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    values = _read(path)
    folder, text, scored = path.parent, values["text"], values.get("scored", {})
    module = values["predictor"].partition(":")[0]
    files = [folder / module, *(folder / str(name) for name in values.get("files", []))]
    for file in files:
        if not file.is_file():
            raise FormatError(f"{path}: there is no file {file}; `predictor` is FILE.py:FACTORY, `files` what it reads")
    alphabet = _alphabet(folder, values["tokenizer"])
    source = folder / text["path"]
    hidden = [source]
    documents: list[bytes] | None = None
    if text.get("layout", "documents") == "flat":
        rows = _flat_rows(source, alphabet, text)
    else:
        documents = list(islice(read_documents(source, _sentencepiece(alphabet)), text.get("documents")))
        if "tokens" in scored:
            hidden.append(folder / scored["tokens"])
            tokens = documents_of(token_stream(hidden[-1], _sentencepiece(alphabet)))[: len(documents)]
            if len(tokens) != len(documents):
                raise MismatchError(f"{path}: {len(tokens)} documents of tokens for {len(documents)} of text")
        else:
            tokens = [alphabet.encode(document) for document in documents]
        end = [BOS] if scored.get("ends", "coded") == "coded" else []
        rows = [Row(BOS, np.concatenate([document, end]).astype(np.int64)) for document in tokens]
    if not any(len(row.targets) for row in rows):
        raise FormatError(f"{path}: no token to score in {source}; name a text, or a flat stream of a row or more")
    largest = max(int(row.targets.max(initial=0)) for row in rows)
    if largest >= alphabet.vocab_size:
        raise MismatchError(
            f"{path}: token {largest}, but the tokenizer has 0 to {alphabet.vocab_size - 1}; name its own"
        )
    order = _order(folder, scored.get("order"), rows)
    counted: float | None = scored.get("text_bytes")
    table = _byte_table(folder, scored["byte_table"], alphabet) if "byte_table" in scored else None
    count = min(scored.get("documents", len(rows)), len(rows))
    if counted is None and table is not None:
        counted = float(sum(table[rows[row].targets].sum() for row in order[:count]))
    return Claim(
        name=path.parent.resolve().name,
        claimed_bpb=float(values["claimed_bpb"]),
        program=Program(f"{Path(module).name}:{values['predictor'].partition(':')[2]}", files, hidden),
        alphabet=alphabet,
        batch=values.get("batch", BATCH),
        rows=rows,
        documents=documents,
        order=order,
        ends_coded=documents is not None and scored.get("ends", "coded") == "coded",
        side_bits=float(scored.get("side_bits", 0)),
        scored=count,
        byte_table=table,
        counted_bytes=counted,
    )


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
        for key, value in found.items():
            if key not in keys:
                raise FormatError(f"{path}: unknown key {key!r} in [{table}], expected {sorted(keys)}; {_HELP}")
            if not isinstance(value, keys[key]) or isinstance(value, bool):
                raise FormatError(f"{path}: {key} is {value!r}, of the wrong type; {_HELP}")
            if isinstance(value, int) and value < (0 if key == "side_bits" else 1):
                raise FormatError(f"{path}: {key} is {value}; give a number above 0")
    for table, key in (("", "claimed_bpb"), ("", "predictor"), ("", "tokenizer"), ("", "text"), ("text", "path")):
        if key not in (values[table] if table else values):
            raise FormatError(f"{path}: {key} is missing; {_HELP}")
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
    """The tokenizer for reading token shards, which must exist even where there are none."""
    if isinstance(alphabet, Tokenizer):
        return alphabet
    from trainer.data.sample import sp1024

    return sp1024()


def _flat_rows(source: Path, alphabet: Alphabet, text: Mapping[str, Any]) -> list[Row]:
    window = text.get("window", 1024)
    targets = text.get("targets")
    enough = None if targets is None else targets + 1
    stream = token_stream(source, _sentencepiece(alphabet), enough).astype(np.int64)
    return [Row(int(stream[w.start]), stream[w.start + 1 : w.end + 1]) for w in flat_windows(len(stream), window)]


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
