"""Train and pack the model of the submission in this script's folder:

torchrun --nproc-per-node=8 train_gpt.py --shards SHARDS --tokenizer T.model --docs TRAINING_TEXT --budget N -o RUN
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent


def train_and_pack(shards: str, tokenizer: str, docs: Path, budget: int, run: Path) -> Path | None:
    """Train the model and write a pack of at most `budget` bytes.

    Args:
        shards: folder of the token shards.
        tokenizer: the SentencePiece `.model`.
        docs: training text, for the calibration.
        budget: the most bytes of the pack.
        run: the folder of the run.

    Returns:
        The pack's path; None in every process but the first, and after an interrupt.
    """
    import os

    import torch

    import codec
    from codec.model.checkpoint import load_checkpoint
    from trainer.distributed import World
    from trainer.fit.calibrate import calibrate_checkpoint
    from trainer.recipe import Recipe
    from trainer.run.loop import train

    recipe = Recipe.from_dict(json.loads((HERE / "recipe.json").read_bytes()))
    data = replace(recipe.data, shards=shards, tokenizer=tokenizer)
    done = train(replace(recipe, data=data), run)
    if done.interrupted or int(os.environ.get("RANK", "0")):
        return None
    loaded = load_checkpoint(run)
    alone = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = calibrate_checkpoint(loaded, docs, 131_072, world=alone)
    blob = codec.compress(loaded.state_dict, loaded.config, loaded.tokenizer, budget, found.moments)
    (run / "model.pack").write_bytes(blob)
    return run / "model.pack"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train and pack the model of this submission.")
    for name in ("--shards", "--tokenizer"):
        parser.add_argument(name, required=True)
    parser.add_argument("--docs", type=Path, required=True, help="training text, for the calibration")
    parser.add_argument("--budget", type=int, required=True, help="the most bytes of the pack")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    a = parser.parse_args()
    sys.path.insert(0, str(HERE / "code"))
    print(train_and_pack(a.shards, a.tokenizer, a.docs, a.budget, a.output))
