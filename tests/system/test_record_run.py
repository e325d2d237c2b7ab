"""examples/record_run.sh: train, calibrate, pack and prove on several processes by one command."""

import json
import os
import subprocess
import sys
from itertools import islice

import pytest

from tests.support.helpers import ROOT
from trainer.data.sample import val_documents

TINY = [
    "model.vocab_size=1024",
    "model.window=64",
    "model.num_layers=5",
    "model.model_dim=32",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.xsa_layers=5",
    "model.loop_start=2",
    "model.loop_end=3",
    "model.rope_dims=8",
    "train.fp8=false",
    "train.seconds=0",
    "train.iterations=4",
    "train.batch_tokens=2048",
    "train.micro_batches=2",
    "train.val_tokens=2048",
    "train.checkpoint_seconds=0",
]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_one_command_from_shards_to_a_proof(tmp_path, processes):
    few = [json.dumps({"text": text.decode()}) + "\n" for text in islice(val_documents(), 12)]
    for name, part in (("train", few), ("val", few[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    tool = [sys.executable, "-m", "underpar", "data", "prepare", "val.jsonl", "train.jsonl", "--val-documents", "3"]
    tokenizer = str(ROOT / "trainer" / "sample" / "fineweb_1024_bpe.model")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": path, "BUDGET": "300000", "TOKENS": "2048"}
    environment |= {"PROCESSES": str(processes), "DEVICES": ",".join(["cpu"] * processes)}
    subprocess.run([*tool, "--tokenizer", tokenizer, "-o", "shards"], cwd=tmp_path, env=environment, check=True)
    script = ["sh", str(ROOT / "examples" / "record_run.sh"), "shards", "train.jsonl", "val.jsonl", "out", *TINY]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True)
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["ok"]
    assert proof["documents"] == 3
    assert (tmp_path / "out" / "model.pack").stat().st_size <= 300_000
