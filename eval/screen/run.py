"""Execute one run of a screen in its own process: train, then score the validation shards, flat and by documents.

Run as `python -m eval.screen.run FOLDER`, with the recipe as JSON on standard input. The score appears in `score.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from codec.console import CheckFailed
from codec.errors import CodecError
from codec.files import atomic_write
from codec.model.checkpoint import WEIGHTS
from eval.score.bpb import score
from eval.score.models import load_model
from eval.score.streams import token_stream
from eval.score.windows import Policy
from trainer.data.source import open_source
from trainer.distributed import ALONE
from trainer.recipe import Recipe
from trainer.run.log import METRICS, read_metrics
from trainer.run.loop import train
from trainer.run.state import RESUME

SCORE = "score.json"
"""File of a finished run: `bpb_flat` and `bpb_document`, bits per byte of the validation tokens under each policy;
`parameters`, `steps`, `train_tokens` and `seconds` of training."""


def run(recipe: Recipe, folder: Path) -> None:
    """Train and score a recipe; a stopped run continues from its last checkpoint, or begins again without one.

    Raises:
        CheckFailed: training diverged, or was interrupted.
    """
    trained = (folder / WEIGHTS).exists() and not (folder / RESUME).exists()
    if not trained and train(recipe, folder, resume=(folder / METRICS).exists()).interrupted:
        raise CheckFailed("interrupted; run the same command to continue")
    found = scored(recipe, folder)
    with atomic_write(folder / SCORE) as file:
        file.write(json.dumps(found, indent=1).encode())


def scored(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the content of `SCORE` for a trained run."""
    loaded = load_model(folder)
    shards = open_source(recipe, folder, ALONE).val[0].parent
    stream = token_stream(shards, loaded.tokenizer, recipe.train.val_tokens + 1)
    # On a GPU, scores use the precision of training: many runs save seconds each, and all are treated alike.
    place = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = loaded.float_model(*place)
    policies = (Policy.FLAT, Policy.DOCUMENT)
    last = [line for line in read_metrics(folder) if "train_loss" in line][-1]
    return {
        **{f"bpb_{policy}": score(model, loaded.tokenizer, stream, policy).bpb for policy in policies},
        "parameters": sum(tensor.numel() for tensor in loaded.state_dict.values()),
        "steps": last["step"],
        "train_tokens": last["tokens"],
        "seconds": last["seconds"],
    }


def main() -> None:
    """Run a recipe; if the run fails, exit with status 1 and the reason as the last line on stderr."""
    try:
        run(Recipe.from_dict(json.load(sys.stdin)), Path(sys.argv[1]))
    except (CodecError, CheckFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
