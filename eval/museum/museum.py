"""Build the museum of wrong claims: small claims that repeat the mistakes which the challenge has seen.

`build` writes the claims into a folder, each with the score that its author's way of scoring really gives. Each exhibit
names the conditions that the audit must find broken; two exhibits are honest and must hold. The condition `score` may
fail in any wrong exhibit, where the mistake is worth more than the audit's tolerance. All exhibits are audited with
`fresh_text`, since every model here is larger than the text.
"""

import importlib.util
import json
import lzma
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from codec.model.tokenizer import BOS, Tokenizer
from eval.audit.audit import scored_bpb
from eval.audit.claims import load_claim
from eval.audit.coding import encode
from eval.audit.rows import Alphabet, Bytes260
from eval.museum.exhibits import ROW
from trainer.data.sample import sp1024, train_documents, val_documents
from trainer.data.shards import write_shard

DOCUMENTS = (103, 16, 23, 87, 60, 31, 74, 4, 18, 9, 52, 70, 99)
"""Numbers of documents in the validation sample: short documents, several with characters that the tokenizer must spell
in bytes. By chance the first five are easy."""

FRESH = (66, 55, 85, 94, 72, 92, 62, 56, 17, 14, 76, 42, 105)
"""Numbers of documents in the same sample that no exhibit has seen."""

MARGIN = 0.5
"""Bits per byte that the fresh text may score above the claim's; honest exhibits differ by less on such short texts."""

TRAINING_DOCUMENTS = 400

EXHIBITS_FILE = Path(__file__).with_name("exhibits.py")


@dataclass(frozen=True)
class Exhibit:
    """A claim of the museum.

    Attributes:
        name: the name of its folder.
        title: the mistake in a few words.
        seen: the challenge's pull requests that made the mistake.
        predictor: the factory in `eval.museum.exhibits`.
        broken: the conditions that fail, `score` aside; empty for an honest claim.
        batch: documents or rows side by side.
        scored: the table `[scored]` of its claim.toml.
        tokenizer: the challenge's tokenizer of 1,024 pieces, its byte tokenizer, or a tokenizer that writes each letter
            ten times.
        flat: True if the claim scores a stream in rows, not documents.
    """

    name: str
    title: str
    seen: str
    predictor: str = "Bigram"
    broken: frozenset[str] = frozenset()
    batch: int = 16
    scored: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Literal["sp1024", "bytes", "inflating"] = "sp1024"
    flat: bool = False

    @property
    def honest(self) -> bool:
        return not self.broken


PEEKED = frozenset({"future_unseen", "target_unseen", "score_before_update", "decodes"})

EXHIBITS = (
    Exhibit(
        "hashed_cache",
        "n-gram cache that nobody normalised",
        "#1147, #978, #943",
        "HashedCache",
        frozenset({"normalised"}),
    ),
    Exhibit("two_pass", "scores the text after reading it", "#846, #868, #888", "TwoPass", PEEKED),
    Exhibit(
        "gate",
        "expert chosen by the token it scores",
        "#1420, #1785",
        "Gate",
        frozenset({"target_unseen", "decodes"}),
    ),
    Exhibit(
        "root",
        "n-th root of a token for each byte",
        "#1850, #1905",
        "RootOfPairs",
        frozenset({"normalised"}),
        tokenizer="bytes",
    ),
    Exhibit("fitted_delta", "fitted to the tokens it scores", "#1176, #1229, #1319", "FittedDelta", PEEKED),
    Exhibit(
        "length_sorted",
        "longest documents first",
        "#1530 to #1855",
        "Adaptive",
        frozenset({"order"}),
        batch=4,
        scored={"order": "longest_first"},
    ),
    Exhibit(
        "double_spaces",
        "leading space counted twice",
        "#1545, #1576, #1734",
        broken=frozenset({"bytes"}),
        scored={"byte_table": "bytes.json"},
    ),
    Exhibit(
        "byte_fallback",
        "single bytes counted as three",
        "#1143, #1184, #1289",
        broken=frozenset({"bytes"}),
        scored={"byte_table": "bytes.json"},
    ),
    Exhibit(
        "subset",
        "first documents scored, set claimed",
        "#1835, #1854, #2109",
        broken=frozenset({"complete"}),
        scored={"documents": 5},
    ),
    Exhibit(
        "case_lost",
        "text folded to lower case",
        "#1578, #1604",
        broken=frozenset({"text"}),
        scored={"tokens": "tokens.bin"},
    ),
    Exhibit(
        "inflated",
        "tokenizer that writes letters ten times",
        "",
        broken=frozenset({"bytes", "text"}),
        scored={"byte_table": "bytes.json"},
        tokenizer="inflating",
        flat=True,
    ),
    Exhibit("later_rows", "looks at rows that come later", "", "LaterRows", frozenset({"context"}), batch=8, flat=True),
    Exhibit("remembers", "has the text with it", "", "Remembers", frozenset({"memorised"}), batch=1),
    Exhibit("sliding_window", "honest: a window that slides", "", "sliding"),
    Exhibit("score_first", "honest: learns after it has scored", "", "Adaptive", batch=4),
)


def build(folder: Path, exhibits: Iterable[Exhibit] = EXHIBITS) -> dict[str, Path]:
    """Write each exhibit into a folder of its own under `folder`; return the folders by name."""
    return {exhibit.name: _build(folder / exhibit.name, exhibit) for exhibit in exhibits}


@lru_cache
def documents() -> tuple[bytes, ...]:
    """Return the documents that every exhibit scores."""
    all_documents = list(val_documents())
    return tuple(all_documents[n] for n in DOCUMENTS)


def fresh_text(folder: Path) -> Path:
    """Write a text of the same source that no exhibit has seen into `folder`."""
    all_documents = list(val_documents())
    path = folder / "fresh.jsonl"
    path.write_text("".join(json.dumps({"text": all_documents[n].decode()}) + "\n" for n in FRESH))
    return path


def _build(folder: Path, exhibit: Exhibit) -> Path:
    folder.mkdir(parents=True)
    tokenizer = _inflating() if exhibit.tokenizer == "inflating" else sp1024()
    alphabet: Alphabet = Bytes260() if exhibit.tokenizer == "bytes" else tokenizer
    lower = "tokens" in exhibit.scored
    shutil.copy(EXHIBITS_FILE, folder / "predictor.py")
    np.save(folder / "counts.npy", _counts(exhibit.tokenizer, lower))
    files = ["counts.npy"]
    if exhibit.predictor == "Remembers":
        tokens = [np.append(alphabet.encode(document), np.uint16(BOS)) for document in documents()]
        (folder / "text.xz").write_bytes(lzma.compress(np.concatenate(tokens).tobytes()))
        files.append("text.xz")
    if exhibit.predictor == "Gate":
        np.save(folder / "word_start.npy", np.array([piece.startswith(b" ") for piece in tokenizer.token_bytes]))
        files.append("word_start.npy")
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    text = "".join(json.dumps({"text": document.decode()}) + "\n" for document in documents())
    (folder / "text.jsonl").write_text(text)
    if "byte_table" in exhibit.scored:
        (folder / "bytes.json").write_text(json.dumps(_byte_table(exhibit.name, tokenizer)))
    if lower:
        rows = [np.concatenate([[BOS], alphabet.encode(document.lower())]) for document in documents()]
        write_shard(folder / "tokens.bin", np.concatenate(rows))
    _write(folder, exhibit, 0.0, files, alphabet)
    _write(folder, exhibit, claimed_bpb(folder), files, alphabet)
    return folder


def claimed_bpb(folder: Path) -> float:
    """Score a claim as its author's script does: run the predictor here, and show it the text if it has `peek`."""
    spec = importlib.util.spec_from_file_location("museum_exhibit", folder / "predictor.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    claim = load_claim(folder)
    predictor = getattr(module, claim.program.factory.partition(":")[2])()
    return round(scored_bpb(claim, encode(predictor, claim, peek=hasattr(predictor, "peek"))), 4)


def _write(folder: Path, exhibit: Exhibit, claimed: float, files: list[str], alphabet: Alphabet) -> None:
    lines = [
        f"claimed_bpb = {claimed}",
        f'predictor = "predictor.py:{exhibit.predictor}"',
        f"files = {json.dumps(files)}",
        f'tokenizer = "{"byte260" if isinstance(alphabet, Bytes260) else "tokenizer.model"}"',
        f"batch = {exhibit.batch}",
        '[text]\npath = "text.jsonl"',
        *_layout(exhibit, alphabet),
        "[scored]",
        *(f"{key} = {json.dumps(value)}" for key, value in exhibit.scored.items()),
    ]
    (folder / "claim.toml").write_text("\n".join(lines) + "\n")


def _layout(exhibit: Exhibit, alphabet: Alphabet) -> list[str]:
    if not exhibit.flat:
        return []
    targets = sum(1 + len(alphabet.encode(document)) for document in documents()) - 1
    return ['layout = "flat"', f"window = {ROW}", f"targets = {targets // ROW * ROW}"]


@lru_cache
def _inflating() -> Tokenizer:
    """Train a tokenizer whose normaliser writes each small letter ten times."""
    model = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{ord(c):X}\t{' '.join([f'{ord(c):X}'] * 10)}\n" for c in ascii_lowercase))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(document.decode() for document in islice(train_documents(), 50)),
            model_writer=model,
            model_type="bpe",
            vocab_size=600,
            normalization_rule_tsv=str(rules),
            byte_fallback=True,
            max_sentence_length=1 << 30,
            pad_id=0,
            bos_id=BOS,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=2,
        )
    return Tokenizer(model.getvalue())


@lru_cache
def _counts(tokenizer: str, lower: bool) -> NDArray[np.uint16]:
    """Count how often each token follows each token in the training sample, uint16 [V, V]."""
    alphabet: Alphabet
    alphabet = Bytes260() if tokenizer == "bytes" else _inflating() if tokenizer == "inflating" else sp1024()
    counts = np.zeros((alphabet.vocab_size, alphabet.vocab_size), np.int64)
    for n, document in enumerate(train_documents()):
        if n == TRAINING_DOCUMENTS:
            break
        tokens = alphabet.encode(document.lower() if lower else document).astype(np.int64)
        np.add.at(counts, (np.concatenate([[BOS], tokens]), np.concatenate([tokens, [BOS]])), 1)
    return counts.clip(max=65535).astype(np.uint16)


def _byte_table(name: str, tokenizer: Tokenizer) -> list[int]:
    """List the bytes that the author counts for each token."""
    if name == "inflated":
        return tokenizer.token_lengths.tolist()
    if name == "double_spaces":
        return [len(piece) + piece.startswith(b" ") for piece in tokenizer.token_bytes]
    # A byte that is no character decodes to U+FFFD, which has three bytes.
    return [len(piece.decode(errors="replace").encode()) for piece in tokenizer.token_bytes]
