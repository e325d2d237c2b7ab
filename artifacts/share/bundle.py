"""The published form of a model: one folder of files, a model card, and the list of the files' SHA-256 sums.

model.pack           the pack                              always
proof.json           the proof, and documents.json         always: nothing is shared that has not been decoded
model.safetensors    the weights before packing, and tokenizer.model   if the run has them
config.json          the model's shape
recipe.json, metrics.jsonl, train.log, provenance.json     if the run has them
README.md            the model card
SHA256SUMS           of all of these: a folder that agrees with its sums is whole
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import codec
from artifacts.folders import check_sums, write_sums
from artifacts.provenance import FILE as PROVENANCE
from codec.errors import CodecError, FormatError, MismatchError
from codec.files import read_bytes
from codec.model.checkpoint import TOKENIZER, WEIGHTS, load_checkpoint
from codec.model.config import read_config
from codec.pack.reader import Pack
from codec.run_folder import DOCUMENTS, PACK, PROOF
from eval.proof.saved import Evidence, load_proof
from trainer.recipe import RECIPE
from trainer.run.log import LOG, METRICS

CONFIG, CARD = "config.json", "README.md"

OPTIONAL = (WEIGHTS, TOKENIZER, RECIPE, METRICS, LOG, PROVENANCE)


@dataclass(frozen=True)
class Card:
    """A publisher's statements on a model; `data` names the training text, its source and licence.

    Raises:
        CodecError: an entry is empty.
    """

    licence: str  # an SPDX identifier in lower case, as the hub wants it
    data: str

    def __post_init__(self) -> None:
        if not self.licence.strip() or not self.data.strip():
            raise CodecError(
                "card: licence or training data is empty; name both, since nobody may use a model without a licence"
            )


def make_bundle(run: Path, folder: Path, name: str, card: Card) -> None:
    """Fill `folder` with the published form of a run, as `name`.

    Raises:
        CodecError: the run has no pack, no valid proof, or a proof of another pack.
    """
    blob = read_bytes(run / PACK, "pack")
    evidence = _evidence(run, blob)
    pack = codec.open(blob)
    (folder / PACK).write_bytes(blob)
    for file in (PROOF, DOCUMENTS):
        shutil.copy(run / file, folder / file)
    for file in OPTIONAL:
        if (run / file).is_file():
            shutil.copy(run / file, folder / file)
    if pack.config:
        (folder / CONFIG).write_text(pack.config.to_json() + "\n")
    (folder / CARD).write_text(model_card(name, card, pack, evidence.proof, (run / WEIGHTS).is_file()))
    write_sums(folder)
    check_bundle(folder)


def check_bundle(folder: Path) -> Pack:
    """Return the pack of a bundle after a check that everything agrees: sums, pack, config, checkpoint and proof.

    Raises:
        MismatchError: a file is missing, additional or different, or two files are of different models.
        FormatError: a file is not of the kind that its name says.
    """
    check_sums(folder)
    blob = read_bytes(folder / PACK, "pack")
    pack = codec.open(blob)
    _evidence(folder, blob)
    if (folder / CONFIG).exists():
        config = read_config(read_bytes(folder / CONFIG, "config").decode("utf-8", "replace"))
        if config != pack.config:
            raise MismatchError(f"{folder / CONFIG}: not the config of {PACK}; this bundle is of two models")
    if (folder / WEIGHTS).exists() and load_checkpoint(folder).config != pack.config:
        raise MismatchError(f"{folder / WEIGHTS}: not of the config of {PACK}; this bundle is of two models")
    return pack


def _evidence(folder: Path, blob: bytes) -> Evidence:
    """Return the proof in a folder, after a check that it holds and is of the pack `blob`."""
    evidence = load_proof(folder)
    if evidence is None:
        raise FormatError(f"{folder}: no proof; make one with `underpar prove {PACK} --docs TEXT --save {folder}`")
    digest = hashlib.sha256(blob).hexdigest()
    if evidence.pack_sha256 != digest or evidence.proof.get("pack_bytes") != len(blob):
        raise MismatchError(
            f"{folder / PROOF}: a proof of pack {evidence.pack_sha256[:16]}…, {PACK} is {digest[:16]}…; prove it again"
        )
    if evidence.proof.get("ok") is not True:
        raise CodecError(f"{folder / PROOF}: the proof does not hold; only packs that decode are shared")
    return evidence


def model_card(name: str, card: Card, pack: Pack, proof: Mapping[str, Any], checkpoint: bool) -> str:
    """Return the model card: YAML for the hub, then the text for people."""
    title = name.rpartition("/")[2]
    whole = f"`{WEIGHTS}` has the weights as they were before packing (float32, safetensors). " if checkpoint else ""
    return f"""---
license: {json.dumps(card.licence)}
library_name: underpar
tags:
- underpar
- compression
- parameter-golf
---

# {title}

A language model of {pack.parameter_count:,} parameters in {pack.size:,} bytes.

| | |
|---|---|
| bits per byte, really coded, over canonical bytes | {proof["bpb_canonical"]:.5f} |
| of the whole archive, over the original bytes | {proof["bpb_raw"]:.5f} |
| documents, bytes of text | {proof["documents"]:,}, {proof["text_bytes"]:,} |
| of which a general compressor coded, not the model | {proof["stored"]:,}, {proof["stored_bytes"]:,} |
| SHA-256 of the text (each document behind its length, u64) | `{proof["sha256"]}` |
| SHA-256 of `{PACK}` | `{pack.sha256}` |

The text was coded with the model's probabilities and decoded again, in another process, to the same bytes; `{PROOF}`
accounts for every bit. {whole}`SHA256SUMS` lists what belongs to this model.

```python
import artifacts

pack = artifacts.open("{name}")  # fetched once, every file checked
weights = pack.state_dict()  # float32 tensors by name
```

## Training data and licence

{card.data.strip()}

Licence of the model: {card.licence}.
"""
