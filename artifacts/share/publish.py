"""Make a publishable run of a finished training run: add a pack, and the proof of its bits per byte."""

from collections.abc import Sequence
from pathlib import Path

import codec
from codec.console import CheckFailed
from codec.files import atomic_write, read_bytes
from codec.model.checkpoint import load_checkpoint
from codec.quantization.calibration import FILE as CALIBRATION
from codec.quantization.calibration import load_calibration
from codec.run_folder import PACK
from eval.proof.prove import prove
from eval.proof.saved import load_proof, save_proof


def complete(run: Path, documents: Sequence[bytes], budget: int | None = None) -> None:
    """Pack a run and prove the pack on documents, unless the run folder has a pack and its proof already.

    Args:
        run: a run folder; with a calibration, a budget's bits go where they matter.
        documents: the text of the proof.
        budget: the largest allowed size of the pack in bytes.

    Raises:
        CodecError: no checkpoint that can be packed.
        CheckFailed: the proof does not hold; it stays in the folder.
    """
    if not (run / PACK).exists():
        loaded = load_checkpoint(run)
        calibration = load_calibration(run / CALIBRATION) if (run / CALIBRATION).is_file() else None
        made = codec.compress(loaded.state_dict, loaded.config, loaded.tokenizer, budget, calibration)
        with atomic_write(run / PACK) as file:
            file.write(made)
    blob = read_bytes(run / PACK, "pack")
    pack, evidence = codec.open(blob), load_proof(run)
    if evidence is None or evidence.pack_sha256 != pack.sha256:
        proof = prove(blob, documents)
        save_proof(run, blob, pack, documents, proof)
        if not proof.ok:
            raise CheckFailed(f"run {run}: the proof does not hold; nothing is published")
