"""Train a small model on the sample that ships, pack it, and prove what the pack is worth: two minutes on two cores."""

import tempfile
from pathlib import Path

import codec
from codec.model.checkpoint import load_checkpoint
from eval.proof.prove import prove
from trainer.data.sample import val_documents
from trainer.fit.calibrate import calibrate_checkpoint
from trainer.recipe import load_recipe
from trainer.run.loop import train

with tempfile.TemporaryDirectory() as name:
    run = Path(name) / "run"
    train(load_recipe("small", ["train.seconds=60"]), run)
    checkpoint = load_checkpoint(run)
    found = calibrate_checkpoint(checkpoint, docs=None, tokens=32_768)

blob = codec.compress(
    checkpoint.state_dict, checkpoint.config, checkpoint.tokenizer, budget=300_000, calibration=found.moments
)
proof = prove(blob, list(val_documents())[:20])

print(f"pack: {len(blob):,} bytes")
print(f"float {proof.bpb_float:.4f}, ideal {proof.bpb_ideal:.4f}, coded {proof.bpb_coded:.4f} bits per byte")
print("every document was decoded to the same bytes" if proof.ok else "the proof does not hold")
