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
from trainer.data.overlap import Passages, held_out, overlaps
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
    without: Sequence[str | Path] = (),
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
        without: files or folders of held-out text; training documents that share 13 words with them are left out
            (`trainer.data.overlap`). Each process has 8 bytes in memory for a word of this text.

    Returns:
        The manifest: `splits` {`train`, `val`: {`documents`, `tokens`, `text_bytes`, `canonical_bytes`, `files`}},
        `tokenizer` {`file`, `sha256`, `vocab_size`}, `tokens_per_shard`, `sources` (names of the inputs) and, if any
        text was held out, `left_out` {`documents`, `text_bytes`, `without` (names of the held-out inputs)}.

    Raises:
        FormatError: a broken input, none or fewer than `val_documents` documents, or a folder that is not empty.
        CodecError: an input of shards.
    """
    documents = chain.from_iterable(read_documents(path, advance=advance) for path in inputs)
    lengths = tokenizer.token_lengths
    held = held_out(chain.from_iterable(map(read_documents, without)))
    left_out = {"documents": 0, "text_bytes": 0}
    with new_folder(Path(folder)) as new:
        writers = {split: ShardWriter(new, PREFIX, split, tokens_per_shard, tokenizer) for split in ("train", "val")}
        counts = {split: dict.fromkeys(COUNTS, 0) for split in writers}
        with writers["train"], writers["val"]:
            for chunk, done in _tokenized(_chunks(documents, val_documents), tokenizer, held, processes):
                writers[chunk.split].append(done.tokens)
                count, size = counts[chunk.split], sum(map(len, chunk.documents))
                count["documents"] += done.documents
                count["tokens"] += len(done.tokens)
                count["text_bytes"] += done.text_bytes
                count["canonical_bytes"] += int(lengths[done.tokens].sum())
                left_out["documents"] += len(chunk.documents) - done.documents
                left_out["text_bytes"] += size - done.text_bytes
        found = sum(count["documents"] for count in counts.values()) + left_out["documents"]
        if found < max(1, val_documents):
            raise FormatError(f"{found:,} documents of input, expected at least {max(1, val_documents):,}; add more")
        if found == left_out["documents"]:
            raise FormatError(f"all {found:,} documents share words with held-out text; add other text")
        manifest = {
            "splits": {s: {**counts[s], "files": [p.name for p in writers[s].paths]} for s in writers},
            "tokenizer": {"file": TOKENIZER, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
            "tokens_per_shard": tokens_per_shard,
            "sources": [Path(path).name for path in inputs],
        }
        if without:
            manifest["left_out"] = {**left_out, "without": [Path(path).name for path in without]}
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


@dataclass(frozen=True)
class Tokenized:
    """The tokens of a chunk's documents that were kept, and how many documents and bytes these are."""

    tokens: Tokens
    documents: int
    text_bytes: int


def _tokenized(
    chunks: Iterator[Chunk], tokenizer: AnyTokenizer, held: Passages, processes: int
) -> Iterator[tuple[Chunk, Tokenized]]:
    """Yield every chunk with its tokens, in order, at most two chunks ahead for each process."""
    if processes == 1:
        for chunk in chunks:
            yield chunk, _kept(chunk, tokenizer, held)
        return
    ahead: deque[tuple[Chunk, Future[Tokenized]]] = deque()
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (tokenizer.model, held)) as pool:
        try:
            for chunk in chunks:
                ahead.append((chunk, pool.submit(_work, chunk)))
                if len(ahead) == 2 * processes:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for chunk, future in ahead:
                yield chunk, future.result()
        except BrokenProcessPool as error:
            raise CodecError("a tokenizing process was killed (out of memory?); use fewer processes") from error


def _kept(chunk: Chunk, tokenizer: AnyTokenizer, held: Passages) -> Tokenized:
    """Tokenize the documents of a chunk; those for training must share nothing with held-out text."""
    kept = [text for text in chunk.documents if chunk.split == "val" or not overlaps(text, held)]
    return Tokenized(encode_documents(kept, tokenizer), len(kept), sum(map(len, kept)))


def encode_documents(documents: Sequence[bytes], tokenizer: AnyTokenizer) -> Tokens:
    """Return the tokenizer's first token and the tokens of each document, one document after another: [T]."""
    first = np.array([tokenizer.begin], np.uint16)
    parts = [part for document in documents for part in (first, tokenizer.encode(document))]
    return np.concatenate(parts) if parts else np.empty(0, np.uint16)


_tokenizer: AnyTokenizer
_held: Passages
"""The tokenizer of a worker process and the passages of held-out text, sent to the process once."""


def _start(model: bytes, held: Passages) -> None:
    global _tokenizer, _held
    _tokenizer, _held = open_tokenizer(model), held


def _work(chunk: Chunk) -> Tokenized:
    return _kept(chunk, _tokenizer, _held)
