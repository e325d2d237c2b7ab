"""Read and write the header of a pack: JSON that lists the tensors and the lengths of their parts."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from codec.errors import FormatError, MismatchError
from codec.exact.recall import read_recall
from codec.model.byte_pairs import AnyTokenizer
from codec.model.config import AnyConfig
from codec.model.parameters import parameters
from codec.numerics.widths import ARITHMETIC
from codec.pack.parts.batches import BATCH, MOST_BATCH
from codec.pack.parts.dtypes import BYTES, SLAB, slab_count
from codec.run_folder import WEIGHTS
from codec.zstd import shrink, unshrink

MAX_HEADER = 1 << 26
"""The most bytes of a header: a million tensors with short names."""

HEADER, HEADER_A_BYTE = 1 << 20, 64
"""So many bytes a header may have at any rate, and so many more for each byte of its section: names of tensors that
are much alike shrink to a twentieth."""

MOST_BESIDE = 1 << 26
"""Bytes of the other files of a model's folder together."""

MAX_ELEMENTS = 1 << 40
"""The most elements that any pack may claim to hold."""

CLAIMED = 1 << 30
"""Bytes of tensors that a pack may claim however small the file is, each element 4 bytes or more."""

CLAIMED_A_BYTE = 1 << 18
"""Bytes of tensors that a larger pack may claim for each of its own. A slab of 2^22 zeros takes 100 bytes or more."""

MAX_DIMENSIONS = 64
"""The most dimensions of a tensor: torch's limit."""


def write_header(header: Mapping[str, Any]) -> bytes:
    """Return the section of a header.

    Raises:
        FormatError: a header that `read_header` would refuse.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    section = shrink(text)
    if len(text) > (most := _most_header(section)):
        raise FormatError(f"pack: a header of {len(text)} bytes, expected at most {most}; use shorter names")
    return section


def _most_header(section: bytes) -> int:
    return min(MAX_HEADER, HEADER + HEADER_A_BYTE * len(section))


def _claimed(entry: Mapping[str, Any], least: int) -> int:
    """Return the bytes that a tensor claims, each of its dimensions `least` or more."""
    return max(4, BYTES[entry["dtype"]]) * prod(max(least, n) for n in entry["shape"])


def read_header(section: bytes, size: int) -> dict[str, Any]:
    """Return the header of a pack of `size` bytes, with every field checked that is used later.

    Raises:
        FormatError: a header that underpar does not write.
    """
    header = parse_header(unshrink(section, _most_header(section), "pack: header"))
    most = max(CLAIMED, CLAIMED_A_BYTE * size)
    total = sum(_claimed(entry, 1) for entry in header["tensors"])  # rows of nothing have steps
    total += sum(_claimed(entry, 0) for entry in header["vectors"])
    if total > most:
        raise FormatError(f"pack: header claims tensors of {total} bytes in {size} bytes, expected at most {most}")
    return header


def parse_header(text: bytes) -> dict[str, Any]:
    """Return the JSON of a header.

    Raises:
        FormatError: fields that are missing, of other types, or out of range.
    """
    try:
        header = json.loads(text)
        if header["arithmetic"] != ARITHMETIC:
            raise FormatError(f"pack: arithmetic version {header['arithmetic']!r}, this underpar computes {ARITHMETIC}")
        for entry in header["tensors"]:
            _check_entry(entry)
            if not _lengths(entry["parts"]) or len(entry["parts"]) != slab_count(entry["shape"], most_of(header)):
                raise FormatError(f"pack: tensor {entry['name']} has {len(entry['parts'])} parts, not as many as slabs")
        for entry in header["vectors"]:
            _check_entry(entry)
        names = [entry["name"] for entry in header["tensors"] + header["vectors"]]
        if len(set(names)) != len(names):
            raise FormatError("pack: header names a tensor twice")
        _check_batches(header)
        twins = header.get("twins", {})
        if not set(twins.values()) <= set(names) or set(twins) & set(names) or not isinstance(twins, dict):
            raise FormatError("pack: header has a name for a tensor that is not there")
        metadata = header.get("metadata", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError("pack: header has metadata other than text")
        files = header.get("files", {})
        if not all(map(_file_name, files)) or not _lengths(files.values()) or sum(files.values()) > MOST_BESIDE:
            raise FormatError(f"pack: header names files outside the pack's folder, or of over {MOST_BESIDE} bytes")
        if "recall" in header:
            read_recall(header["recall"])
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise FormatError(f"pack: header is not what underpar writes ({error!r})") from error
    return header


def most_of(header: Mapping[str, Any]) -> int:
    """Return the most elements of a slab; where the header says `whole`, as for models, tensors are never cut."""
    return MAX_ELEMENTS if header.get("whole") is True else SLAB


def check_vocabulary(config: AnyConfig, tokenizer: AnyTokenizer) -> None:
    """Raise MismatchError for a tokenizer with more tokens than the model has."""
    if tokenizer.vocab_size > config.vocab_size:
        raise MismatchError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; pass the model's tokenizer"
        )


def check_shapes(config: AnyConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MismatchError for names or shapes that are not the config's."""
    expected = {name: parameter.shape for name, parameter in parameters(config).items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise MismatchError(
                f"tensor {name}: found {found.get(name, 'none')}, the config expects {expected.get(name, 'none')}; "
                "pass the state dict and the config of one model"
            )


def _check_entry(entry: dict[str, Any]) -> None:
    entry["name"].encode()  # refuses lone surrogates
    shape = entry["shape"]
    typed = entry["dtype"] in BYTES and entry.get("kept", entry["dtype"]) in BYTES
    sized = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    sized = sized and all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape)
    if not (typed and sized and prod(max(1, n) for n in shape) <= MAX_ELEMENTS):
        raise FormatError(f"pack: header entry {str(entry)[:200]} is not what underpar writes")


def _lengths(values: Any) -> bool:
    return all(type(n) is int and 0 <= n < 1 << 48 for n in values)


def _check_batches(header: Mapping[str, Any]) -> None:
    """Raise FormatError unless the batches cover the vectors, each batch of one kept dtype and not too large."""
    at, vectors = 0, header["vectors"]
    for count, length in header["batches"]:
        batch = vectors[at : at + count] if _lengths([count, length]) else []
        kinds = {entry.get("kept", entry["dtype"]) for entry in batch}
        size = sum(prod(e["shape"]) for e in batch) * (BYTES[kinds.pop()] if len(kinds) == 1 else BATCH)
        if not batch or len(batch) != count or kinds or size > (2 * BATCH if count > 1 else MOST_BATCH):
            raise FormatError("pack: header has batches of vectors that underpar does not write")
        at += count
    if at != len(vectors):
        raise FormatError(f"pack: header has {len(vectors)} vectors, and batches of {at}")


def _file_name(name: str) -> bool:
    """Return whether a name is that of a file in the folder itself, and not of the weights."""
    return name not in ("", ".", "..", WEIGHTS) and not set(name) & set("/\\\0")
