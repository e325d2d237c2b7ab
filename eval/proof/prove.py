"""Prove a score: code text, decode in a process that has pack and archive alone, compare, account for every bit.

Four figures concern the documents that went through the model:

- `bpb_float`: the cross-entropy of the float model with the pack's weights;
- `bpb_exact`: the cross-entropy of the exact model;
- `bpb_ideal`: the ideal code length under the integer frequencies, with the archive's adaptation;
- `bpb_coded`: the bits in the records, with the archive's adaptation.

`bpb_unadapted` is the ideal code length without adaptation. `bpb_canonical` is all payload over all canonical bytes.
`bpb_raw` is the whole archive over the original bytes.
"""

import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import codec
from codec.archive.writer import ArchiveWriter
from codec.console import CheckFailed, progress
from codec.devices import device_count, device_here
from codec.errors import CodecError
from codec.files import atomic_write
from codec.processes import child_environment
from codec.run_folder import PACK
from codec.text.documents import MODELLED, Record
from codec.text.open_coder import default_policy, open_coder
from codec.text.pipeline import groups
from codec.text.policy import Adaptation, Policy
from eval.score.bpb import score_documents
from trainer.model.build import float_network

BATCH_BYTES = 1 << 24
"""Bytes of text that a device codes together; the bound limits the memory of an encoder."""


@dataclass(frozen=True)
class FirstDifference:
    """The first document and byte, counted from 0, in which decoded documents differ from the originals."""

    document: int
    byte: int


@dataclass(frozen=True)
class Proof:
    """The figures of a proof: sizes in bytes, times in seconds, scores in bits per byte."""

    ok: bool
    documents: int
    text_bytes: int
    canonical_bytes: int
    tokens: int  # coded with the model, ends of documents included
    adaptation: str
    stored: int  # documents that are stored, because a general compressor needs fewer bytes
    stored_bytes: int  # of text in these documents, which the model has no part in
    bpb_float: float
    bpb_exact: float
    bpb_ideal: float
    bpb_unadapted: float  # as bpb_ideal, without adaptation
    bpb_coded: float
    bpb_canonical: float
    bpb_raw: float
    payload_bytes: int
    framing_bytes: int
    archive_bytes: int
    pack_bytes: int
    code_bytes: int
    encode_seconds: float
    decode_seconds: float
    sha256: str  # of the original documents, each behind its length as 8 little-endian bytes
    first_difference: FirstDifference | None
    records: list[Record]  # a record for each document, for reports

    def to_json(self) -> dict[str, Any]:
        """Return the stable JSON fields; `first_difference` appears only if the proof fails."""
        values = asdict(self)
        del values["records"]
        if self.first_difference is None:
            del values["first_difference"]
        return values


def prove(
    blob: bytes,
    documents: Sequence[bytes],
    device: str = "cpu",
    keep: Path | None = None,
    adaptation: Adaptation = Adaptation.NONE,
) -> Proof:
    """Prove the score of a pack on documents.

    Args:
        blob: the pack.
        documents: any bytes.
        device: where the exact model runs, to encode and to decode; see `codec.devices.find_devices`.
        keep: a path where the archive is kept, too.
        adaptation: of the archive.

    Returns:
        The proof; `ok` is False if a document decodes to other bytes.

    Raises:
        CodecError: there is no text, the pack cannot code text, or a general compressor needs fewer bytes than the
            model for every document.
        CheckFailed: the decoding process died.
    """
    if not any(documents):
        raise CodecError(f"nothing to prove: {len(documents)} documents and no byte of text; pass some text")
    pack = codec.open(blob)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / PACK).write_bytes(blob)
        policy = default_policy(pack, adaptation)
        records, framing = _encode(folder / "text.upz", pack, documents, device, policy)
        encode_seconds = time.perf_counter() - begin
        if not any(record.mode == MODELLED for record in records):
            raise CodecError(
                f"nothing to prove: a general compressor needs fewer bytes than the model for every one of the "
                f"{len(documents)} documents, so none was coded with it; `underpar bpb` says the model's own score"
            )
        archive = (folder / "text.upz").read_bytes()
        restored, told = _decode(folder, device)
    if keep:
        with atomic_write(keep) as file:
            file.write(archive)
    if told["failed"] is None:
        difference = first_difference(documents, restored)
    else:
        difference = FirstDifference(told["failed"], same_bytes(documents[told["failed"]], restored[0]))
    modelled = [record for record in records if record.mode == MODELLED]
    canonical = sum(r.canonical_bytes for r in modelled)
    through = [d for d, r in zip(documents, records, strict=True) if r.mode == MODELLED]
    nats = _float_nats(pack, through, device)
    plain = modelled if adaptation == Adaptation.NONE else _unadapted(pack, through, device)
    return Proof(
        ok=difference is None,
        documents=len(documents),
        text_bytes=sum(map(len, documents)),
        canonical_bytes=sum(r.canonical_bytes for r in records),
        tokens=sum(r.tokens for r in records),
        adaptation=adaptation,
        stored=len(records) - len(modelled),
        stored_bytes=sum(r.text_bytes for r in records if r.mode != MODELLED),
        bpb_float=_ratio(nats / math.log(2), canonical),
        bpb_exact=_ratio(sum(r.exact_bits for r in modelled), canonical),
        bpb_ideal=_ratio(sum(r.ideal_bits for r in modelled), canonical),
        bpb_unadapted=_ratio(sum(r.ideal_bits for r in plain), canonical),
        bpb_coded=_ratio(8 * sum(len(r.payload) for r in modelled), canonical),
        bpb_canonical=_ratio(8 * sum(len(r.payload) for r in records), sum(r.canonical_bytes for r in records)),
        bpb_raw=_ratio(8 * len(archive), sum(map(len, documents))),
        payload_bytes=sum(len(r.payload) for r in records),
        framing_bytes=framing,
        archive_bytes=len(archive),
        pack_bytes=len(blob),
        code_bytes=told["code_bytes"],
        encode_seconds=encode_seconds,
        decode_seconds=told["seconds"],
        sha256=fingerprint(documents),
        first_difference=difference,
        records=records,
    )


def fingerprint(documents: Sequence[bytes]) -> str:
    """Return the hex SHA-256 of documents, each behind its length as 8 little-endian bytes."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document).to_bytes(8, "little") + document)
    return digest.hexdigest()


def first_difference(documents: Sequence[bytes], restored: Sequence[bytes]) -> FirstDifference | None:
    """Find the first byte in which `restored` differs from `documents`; None if both are equal."""
    for number, (a, b) in enumerate(zip(documents, restored, strict=False)):
        if a != b:
            return FirstDifference(number, same_bytes(a, b))
    if len(documents) != len(restored):
        return FirstDifference(min(len(documents), len(restored)), 0)
    return None


def same_bytes(a: bytes, b: bytes) -> int:
    """Count the bytes of the longest common prefix of `a` and `b`."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _encode(
    path: Path, pack: codec.Pack, documents: Sequence[bytes], device: str, policy: Policy
) -> tuple[list[Record], int]:
    records: list[Record] = []
    size = sum(map(len, documents))
    with (
        path.open("wb") as stream,
        progress("encoding", size, "byte") as advance,
        ArchiveWriter(stream, pack, policy, device) as writer,
    ):
        for batch in groups(iter(documents), BATCH_BYTES * device_count(device)):
            records += writer.append(batch, advance=advance)
    return records, writer.framing_bytes


def _unadapted(pack: codec.Pack, documents: Sequence[bytes], device: str) -> list[Record]:
    """Code the documents without adaptation."""
    coder, records = open_coder(pack, device=device), []
    with progress("coding without adaptation", sum(map(len, documents)), "byte") as advance:
        limit = BATCH_BYTES * device_count(device)
        for _, found in coder.encode_groups(iter(documents), limit, model_only=True, advance=advance):
            records += found
    return records


def _decode(folder: Path, device: str) -> tuple[list[bytes], dict[str, Any]]:
    """Restore documents from `model.pack` and `text.upz` in a fresh process; return them and the process's figures."""
    command = [sys.executable, "-m", "codec.archive.restore", PACK, "text.upz", "restored", device]
    environment = child_environment()
    # In a session of its own the process gets no Ctrl-C and prints no traceback; an interrupt here ends the process.
    finished = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=False, start_new_session=True
    )
    if finished.returncode:
        raise CheckFailed(f"the decoding process ended with status {finished.returncode} and no documents; see above")
    told = json.loads(finished.stdout.decode().splitlines()[-1])
    data, documents, at = (folder / "restored").read_bytes(), [], 0
    for length in told["lengths"]:
        documents.append(data[at : at + length])
        at += length
    return documents, told


def _float_nats(pack: codec.Pack, documents: Sequence[bytes], device: str) -> float:
    """Sum the nats of the float model with the pack's weights on documents, under the archive's policy.

    The float model runs on the first of several devices.
    """
    assert pack.config and pack.tokenizer  # the exact model has been built
    model = float_network(pack.config)
    model.load_state_dict(pack.state_dict())
    tokens = [pack.tokenizer.encode(document) for document in documents]
    with progress("scoring the float model", sum(len(t) + 1 for t in tokens), "token") as advance:
        scores = score_documents(model.to(device_here(device)).eval(), pack.tokenizer, tokens, advance=advance)
    return math.fsum(score.nats for score in scores)


def _ratio(bits: float, size: int) -> float:
    return float(bits) / size if size else 0.0
