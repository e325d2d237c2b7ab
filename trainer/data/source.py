"""The data of a recipe: token shards of both splits, and their tokenizer."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from codec.errors import FormatError, MismatchError
from codec.files import read_bytes
from codec.model.tokenizer import Tokenizer
from trainer.data.batches import Batches
from trainer.data.loader import Stream
from trainer.data.mixture import Mixed
from trainer.data.prepare import MANIFEST, encode_documents
from trainer.data.sample import sp1024, train_documents, val_documents
from trainer.data.shards import TOKENIZER, check_tokenizer, find_shards, write_shard
from trainer.distributed import World
from trainer.recipe import DataRecipe, Recipe

EMBEDDED = "embedded"
"""The name of the sample that ships, in place of a folder of shards."""

LATE_SEED = 1 << 64
"""Added to the seed for late rows, so that even the same shards come in another order. The number is beyond the 32
bits of a seed and of an epoch's number: no epoch of late rows has the order of an epoch of the others."""

SOURCE_SEED = 1 << 72
"""Added to the seed for each further source of a mixture, so that all have orders of their own."""

SAMPLED = 1 << 20
"""Training tokens in the sample for `bytes_per_token`."""


@dataclass(frozen=True)
class Source:
    """Shards in the order of their streams, and the tokenizer; `late` and `val` are empty if the recipe has no use.

    Attributes:
        train: the shards of each source.
        shares: bytes of text for each byte that its tokens stand for, at most 1: of `train` and of `val`.
    """

    train: list[list[Path]]
    late: list[Path]
    val: list[Path]
    tokenizer: Tokenizer
    shares: tuple[float, float] = (1.0, 1.0)


def open_source(recipe: Recipe, folder: Path, world: World) -> Source:
    """Find the shards and the tokenizer of a recipe; the sample that ships is first tokenized into `folder`.

    Raises:
        FormatError: no shards, or no tokenizer.
        MismatchError: the tokenizer's vocabulary is not the model's, or the late shards have another tokenizer.
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
        world.told(0.0)  # the other processes wait here for the shards
    folders = [Path(folder) for folder, _ in data.mixture] or [shards]
    train = [find_shards(folder, "train") for folder in folders]
    val = find_shards(shards, "val") if recipe.train.val_tokens else []
    for path in (*chain.from_iterable(train), *val):
        check_tokenizer(path, tokenizer)
    shares = min(text_share(folder, "train") for folder in folders), text_share(shards, "val")
    return Source(train, _late_shards(data, tokenizer), val, tokenizer, shares)


def text_share(folder: Path, split: str) -> float:
    """Return the bytes of a split's text over those of its tokens, at most 1; 1 for shards without a manifest.

    A normalising tokenizer can make more bytes than the text has: no score is divided by them.

    Raises:
        FormatError: the manifest is not one of `trainer.data.prepare`.
    """
    if not (folder / MANIFEST).is_file():
        return 1.0
    try:
        counts = json.loads(read_bytes(folder / MANIFEST, "manifest"))["splits"][split]
        text = counts.get("text_bytes", counts["canonical_bytes"])  # shards that were fetched say nothing of their text
        return min(1.0, float(text / max(1, counts["canonical_bytes"]))) if text else 1.0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"manifest {folder / MANIFEST}: not one of `underpar data prepare` ({error!r})") from error


def _late_shards(data: DataRecipe, tokenizer: Tokenizer) -> list[Path]:
    """Return a recipe's late shards; unless the recipe names the tokenizer, they must have it beside them."""
    if not data.late_shards:
        return []
    folder = Path(data.late_shards)
    beside = folder / TOKENIZER
    if beside.exists() or not data.tokenizer:
        other = Tokenizer(read_bytes(beside, "tokenizer"))
        if other.sha256 != tokenizer.sha256:
            raise MismatchError(
                f"recipe: data.late_shards {folder} have another tokenizer ({other.vocab_size} tokens) than "
                f"data.shards ({tokenizer.vocab_size} tokens); prepare both with one"
            )
    return find_shards(folder, "train")


def open_batches(source: Source, recipe: Recipe, world: World) -> list[Stream]:
    """Open this process's rows of the training shards and of the late shards, each in its own order.

    Raises:
        FormatError: see `Batches`.
        CodecError: see `Mixed`.
    """
    seed, ranks, begin = recipe.data.seed, (world.rank, world.size), source.tokenizer.begin

    def rows(shards: list[Path], key: int) -> Batches:
        return Batches(shards, recipe.model.window, recipe.model.vocab_size, key, *ranks, begin)

    if mixture := recipe.data.mixture:
        weights = [weight for _, weight in mixture]
        sources = [rows(shards, seed + number * SOURCE_SEED) for number, shards in enumerate(source.train)]
        first: Stream = Mixed(sources, weights, seed, *ranks)
    else:
        first = rows(source.train[0], seed)
    return [first, *([rows(source.late, seed + LATE_SEED)] if source.late else [])]


def bytes_per_token(batches: Stream, tokenizer: Tokenizer, world: World, share: float = 1.0) -> float:
    """Return the mean bytes of a training token by the challenge's table, over a run's first `SAMPLED` tokens.

    A `share` of them is text (`Source.shares`).

    The leading process has the same first rows for any number of processes.

    Raises:
        FormatError: the tokens stand for no text.
    """
    rows = min(batches.rows, max(1, SAMPLED // batches.seq_len))
    inputs, targets = batches.take(0, rows * world.size)
    found = share * tokenizer.challenge_bytes(inputs, targets) / targets.size
    if not found:
        raise FormatError(f"training: {targets.size:,} tokens stand for 0 bytes of text; check shards and tokenizer")
    return found


def tokenize_sample(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the shards of the sample that are missing in `folder`."""
    for split, documents in (("train", train_documents), ("val", val_documents)):
        path = folder / f"fineweb_{split}_000000.bin"
        if not path.exists():
            write_shard(path, encode_documents(list(documents()), tokenizer), tokenizer)
