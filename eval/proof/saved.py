"""Save a proof in a run folder for the report, and load it: `model.pack`, `proof.json`, `documents.json`.

`proof.json` holds the stable fields of a proof. `documents.json` holds the SHA-256 of the pack, the sizes of each
document, the coded sizes of the same text under other compressors, and the surprisal of every token of one document.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.errors import CodecError, FormatError
from codec.files import atomic_write, read_bytes
from codec.pack.reader import Pack
from codec.run_folder import DOCUMENTS, PACK, PROOF
from codec.text.documents import MODELLED
from eval.bench.compressors import baseline_sizes, zstd_size
from eval.proof.plots import DocumentSize
from eval.proof.prove import Proof
from eval.proof.surprisal import Piece, surprisal

EXAMPLE_BYTES = 1500
"""The document whose length in bytes is nearest to this number is shown in colours: about a page."""


@dataclass(frozen=True)
class Evidence:
    """A saved proof. `example` is the number of the document whose tokens are `pieces`; both are empty without one."""

    proof: dict[str, Any]
    pack_sha256: str
    documents: list[DocumentSize]
    peers: dict[str, int]
    example: int | None
    pieces: list[Piece]


def check_pack(run: Path, blob: bytes) -> None:
    """Check that `run` holds no pack or the pack `blob`. Raises CodecError for another pack."""
    path = run / PACK
    if path.exists() and path.read_bytes() != blob:
        raise CodecError(f"run {run}: its {PACK} is another pack; prove that pack, or choose another folder")


def save_proof(run: Path, blob: bytes, pack: Pack, documents: Sequence[bytes], proof: Proof) -> Evidence:
    """Save a proof of a pack in a run folder.

    Args:
        run: the run folder.
        blob: the pack.
        pack: the same pack, opened.
        documents: the documents of the proof.
        proof: the figures.

    Raises:
        CodecError: `run` holds another pack.
    """
    check_pack(run, blob)
    sizes = [
        DocumentSize(len(document), len(record.payload), zstd_size(document))
        for document, record in zip(documents, proof.records, strict=True)
    ]
    example, pieces = None, []
    if candidates := [n for n, record in enumerate(proof.records) if record.mode == MODELLED]:
        example = min(candidates, key=lambda n: abs(len(documents[n]) - EXAMPLE_BYTES))
        pieces = surprisal(pack, documents[example])
    evidence = Evidence(proof.to_json(), pack.sha256, sizes, baseline_sizes(documents), example, pieces)
    _write(run / PACK, blob)
    _write(run / PROOF, json.dumps(evidence.proof, indent=1).encode())
    _write(run / DOCUMENTS, json.dumps(_to_json(evidence), indent=None).encode())
    return evidence


def load_proof(run: Path) -> Evidence | None:
    """Load the proof in `run`; None without a proof. Raises FormatError for files that `save_proof` does not write."""
    if not (run / PROOF).exists() or not (run / DOCUMENTS).exists():
        return None
    try:
        proof = json.loads(read_bytes(run / PROOF, "proof"))
        values = json.loads(read_bytes(run / DOCUMENTS, "documents of a proof"))
        return Evidence(
            proof={str(name): value for name, value in proof.items()},
            pack_sha256=str(values["pack"]),
            documents=[DocumentSize(*map(int, sizes)) for sizes in values["documents"]],
            peers={str(name): int(size) for name, size in values["peers"].items()},
            example=values["example"],
            pieces=[Piece(text.encode("latin-1"), float(bits)) for text, bits in values["pieces"]],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"run {run}: {PROOF} or {DOCUMENTS} is not what underpar writes ({error!r}); prove again with --save"
        ) from error


def _to_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "pack": evidence.pack_sha256,
        "documents": evidence.documents,  # [bytes of text, of payload, under zstd -19 alone]
        "peers": evidence.peers,
        "example": evidence.example,
        "pieces": [(piece.text.decode("latin-1"), piece.bits) for piece in evidence.pieces],  # a byte is a character
    }


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)
