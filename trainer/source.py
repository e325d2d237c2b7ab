"""The data of a recipe: token shards of both splits, and their tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from codec.errors import MismatchError
from codec.files import read_bytes
from codec.tokenizer import Tokenizer
from trainer.distributed import World
from trainer.embedded import sp1024, train_documents, val_documents
from trainer.prepare import TOKENIZER, encode_documents
from trainer.recipe import Recipe
from trainer.shards import find_shards, write_shard

EMBEDDED = "embedded"
"""The name of the sample that ships, in place of a folder of shards."""


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


def tokenize_sample(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the shards of the sample that are not in `folder` yet."""
    for split, documents in (("train", train_documents), ("val", val_documents)):
        path = folder / f"fineweb_{split}_000000.bin"
        if not path.exists():
            write_shard(path, encode_documents(list(documents()), tokenizer))
