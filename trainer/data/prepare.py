"""Documents to token shards, by several processes; the bytes are the same for any number of processes.

A prepared folder holds `fineweb_train_*.bin`, `fineweb_val_*.bin`, `tokenizer.model` and `manifest.json`. The folder
appears whole or not at all.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from codec.console import Advance, ignore_progress
from codec.errors import CodecError, FormatError
from codec.files import atomic_write, new_folder
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from trainer.data.documents import read_documents
from trainer.data.shards import TOKENIZER, TOKENS_PER_SHARD, ShardWriter, Tokens

PREFIX = "fineweb"
"""Prefix of shard names, for which the challenge's scripts look."""

MANIFEST = "manifest.json"

COUNTS = ("documents", "tokens", "text_bytes", "canonical_bytes")
"""Counts of a split in the manifest."""

CHUNK_BYTES = 1 << 20
"""Bytes of text in one task of a process, unless one document is longer."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents of one split."""

    split: str
    documents: list[bytes]


def prepare(
    inputs: Sequence[str | Path],
    tokenizer: AnyTokenizer,
    folder: str | Path,
    val_documents: int = 0,
    processes: int = 1,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    advance: Advance = ignore_progress,
) -> dict[str, Any]:
    """Tokenize the documents of `inputs`, in order, into a folder of shards: each its tokens behind the first.

    Args:
        inputs: files or folders of text; shards are refused, since their tokenizer is unknown here.
        tokenizer: of the shards.
        folder: must be absent or empty.
        val_documents: so many documents at the beginning are the validation split, all others the training split.
        processes: number of tokenizing processes; each has at most 2 MiB of text (or two documents) in memory.
        tokens_per_shard: length of a shard.
        advance: called with the bytes of the input files that have been read.

    Returns:
        The manifest: `splits` {`train`, `val`: {`documents`, `tokens`, `text_bytes`, `canonical_bytes`, `files`}},
        `tokenizer` {`file`, `sha256`, `vocab_size`}, `tokens_per_shard`, `sources` (names of the inputs).

    Raises:
        FormatError: a broken input, none or fewer than `val_documents` documents, or a folder that is not empty.
        CodecError: an input of shards.
    """
    documents = chain.from_iterable(read_documents(path, advance=advance) for path in inputs)
    lengths = tokenizer.token_lengths
    with new_folder(Path(folder)) as new:
        writers = {split: ShardWriter(new, PREFIX, split, tokens_per_shard, tokenizer) for split in ("train", "val")}
        counts = {split: dict.fromkeys(COUNTS, 0) for split in writers}
        with writers["train"], writers["val"]:
            for chunk, tokens in _tokenized(_chunks(documents, val_documents), tokenizer, processes):
                writers[chunk.split].append(tokens)
                count = counts[chunk.split]
                count["documents"] += len(chunk.documents)
                count["tokens"] += len(tokens)
                count["text_bytes"] += sum(map(len, chunk.documents))
                count["canonical_bytes"] += int(lengths[tokens].sum())
        found = sum(count["documents"] for count in counts.values())
        if found < max(1, val_documents):
            raise FormatError(f"{found:,} documents of input, expected at least {max(1, val_documents):,}; add more")
        manifest = {
            "splits": {s: {**counts[s], "files": [p.name for p in writers[s].paths]} for s in writers},
            "tokenizer": {"file": TOKENIZER, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
            "tokens_per_shard": tokens_per_shard,
            "sources": [Path(path).name for path in inputs],
        }
        (new / TOKENIZER).write_bytes(tokenizer.model)
        write_manifest(new, manifest)
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` into `folder`."""
    with atomic_write(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=2) + "\n").encode())


def _chunks(documents: Iterator[bytes], val_documents: int) -> Iterator[Chunk]:
    """Cut after `val_documents` documents, and wherever a chunk would exceed `CHUNK_BYTES`."""
    for split, part in (("val", islice(documents, val_documents)), ("train", documents)):
        held: list[bytes] = []
        size = 0
        for document in part:
            if held and size + len(document) > CHUNK_BYTES:
                yield Chunk(split, held)
                held, size = [], 0
            held.append(document)
            size += len(document)
        if held:
            yield Chunk(split, held)


def _tokenized(chunks: Iterator[Chunk], tokenizer: AnyTokenizer, processes: int) -> Iterator[tuple[Chunk, Tokens]]:
    """Yield every chunk with its tokens, in order, at most two chunks ahead for each process."""
    if processes == 1:
        for chunk in chunks:
            yield chunk, encode_documents(chunk.documents, tokenizer)
        return
    ahead: deque[tuple[Chunk, Future[Tokens]]] = deque()
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (tokenizer.model,)) as pool:
        try:
            for chunk in chunks:
                ahead.append((chunk, pool.submit(_work, chunk.documents)))
                if len(ahead) == 2 * processes:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for chunk, future in ahead:
                yield chunk, future.result()
        except BrokenProcessPool as error:
            raise CodecError("a tokenizing process was killed (out of memory?); use fewer processes") from error


def encode_documents(documents: Sequence[bytes], tokenizer: AnyTokenizer) -> Tokens:
    """Return the tokenizer's first token and the tokens of each document, one document after another: [T]."""
    first = np.array([tokenizer.begin], np.uint16)
    return np.concatenate([part for document in documents for part in (first, tokenizer.encode(document))])


_tokenizer: AnyTokenizer
"""The tokenizer of a worker process, sent to the process once."""


def _start(model: bytes) -> None:
    global _tokenizer
    _tokenizer = open_tokenizer(model)


def _work(documents: list[bytes]) -> Tokens:
    return encode_documents(documents, _tokenizer)
