"""The data of a recipe: token shards of both splits, and their tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from codec.errors import FormatError, MismatchError
from codec.files import read_bytes
from codec.tokenizer import Tokenizer
from trainer.data import Batches
from trainer.distributed import World
from trainer.embedded import sp1024, train_documents, val_documents
from trainer.prepare import TOKENIZER, encode_documents
from trainer.recipe import Recipe
from trainer.shards import find_shards, write_shard

EMBEDDED = "embedded"
"""The name of the sample that ships, in place of a folder of shards."""

SAMPLED = 1 << 20
"""Training tokens whose bytes are counted."""


@dataclass(frozen=True)
class Source:
    """`train` and `val` are shards in the order of their streams; `val` is empty where the recipe scores none."""

    train: list[Path]
    val: list[Path]
    tokenizer: Tokenizer


def open_source(recipe: Recipe, folder: Path, world: World) -> Source:
    """Find the shards and the tokenizer of a recipe; the sample that ships is tokenized into `folder` first.

    Raises:
        FormatError: no shards, or no tokenizer.
        MismatchError: the tokenizer's vocabulary is not the model's.
    """
    data, shards = recipe.data, Path(recipe.data.shards)
    if data.shards == EMBEDDED:
        tokenizer, shards = sp1024(), folder / "data"
    else:
        tokenizer = Tokenizer(read_bytes(data.tokenizer or shards / TOKENIZER, "tokenizer"))
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise MismatchError(
            f"recipe: model.vocab_size is {recipe.model.vocab_size}, the tokenizer's is {tokenizer.vocab_size}"
        )
    if data.shards == EMBEDDED:
        if world.leads:
            tokenize_sample(shards, tokenizer)
        world.told(0.0)  # the others wait here until the shards are there
    val = find_shards(shards, "val") if recipe.train.val_tokens else []
    return Source(find_shards(shards, "train"), val, tokenizer)


def bytes_per_token(batches: Batches, tokenizer: Tokenizer, world: World) -> float:
    """Bytes that a training token stands for by the challenge's table: the mean over a run's first `SAMPLED` tokens.

    The leading process has the same first rows among any number of processes.

    Raises:
        FormatError: the tokens stand for no text.
    """
    rows = min(batches.rows, max(1, SAMPLED // batches.seq_len))
    inputs, targets = batches.take(0, rows * world.size)
    found = tokenizer.challenge_bytes(inputs, targets) / targets.size
    if not found:
        raise FormatError(f"training: {targets.size:,} tokens stand for 0 bytes of text; check shards and tokenizer")
    return found


def tokenize_sample(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the shards of the sample that are not in `folder` yet."""
    for split, documents in (("train", train_documents), ("val", val_documents)):
        path = folder / f"fineweb_{split}_000000.bin"
        if not path.exists():
            write_shard(path, encode_documents(list(documents()), tokenizer))
