"""Unpack an artifact of the challenge: a `torch.save` file, compressed or not, read without running its code.

The scripts compress with zlib, zstandard, xz or brotli. Some scripts shuffle the bytes first: `BSHF`, the number of
parts, then the parts one after another. With two parts, all bytes at even positions come before all at odd positions.
"""

import io
import lzma
import zipfile
import zlib
from typing import Any

import brotli
import numpy as np
import torch
import zstandard
from torch.utils._pytree import tree_map_only

from codec.errors import FormatError
from codec.model.weight_files import check_storage, why_no_tensors

MAX_BYTES = 1 << 30
"""The most bytes of an unpacked file: the bound on memory for a hostile file."""

SHUFFLED = b"BSHF"

PERGROUP = b"PGRP"
"""The first bytes of containers that need the program lrzip; their models have parts that are not supported."""

_AGAIN = "pass a final_model.int8.ptz, .int6.ptz or .pt as the challenge's scripts write them"


def read_content(blob: bytes) -> Any:
    """Unpack the object in an artifact: plain values and tensors.

    Raises:
        FormatError: the file is of no known form, truncated, or over 1 GiB when unpacked.
    """
    if blob.startswith(PERGROUP):
        raise FormatError(f"artifact: packed with lrzip by groups, which is not supported; {_AGAIN}")
    raw = blob if blob.startswith(b"PK") else _inflate(blob)
    return _unpickle(_unshuffled(raw) if raw.startswith(SHUFFLED) else raw)


def _inflate(blob: bytes) -> bytes:
    """Decompress `blob` by the method that its first bytes name; without a known name it should be brotli."""
    try:
        if blob.startswith(b"\x28\xb5\x2f\xfd"):
            with zstandard.ZstdDecompressor().stream_reader(blob) as reader:
                raw, ended = reader.read(MAX_BYTES + 1), True  # the zip archive inside notices a truncated stream
        elif blob.startswith(b"\xfd7zXZ\0"):
            xz = lzma.LZMADecompressor(memlimit=MAX_BYTES)
            raw = xz.decompress(blob, MAX_BYTES + 1)
            ended = xz.eof
        elif blob.startswith(b"\x78") or not blob:
            inflater = zlib.decompressobj()
            raw = inflater.decompress(blob, MAX_BYTES + 1)
            ended = inflater.eof
        else:
            decoder = brotli.Decompressor()
            raw = decoder.process(blob, output_buffer_limit=MAX_BYTES + 1)
            ended = decoder.is_finished()
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, brotli.error) as error:
        raise FormatError(f"artifact: neither zlib, zstandard, xz nor brotli data ({error}); {_AGAIN}") from error
    if len(raw) > MAX_BYTES:
        raise FormatError(f"artifact: unpacks to over {MAX_BYTES:,} bytes; {_AGAIN}")
    if not ended:
        raise FormatError(f"artifact: truncated: its data does not end within its {len(blob):,} bytes; fetch it again")
    return raw


def _unshuffled(raw: bytes) -> bytes:
    """Undo the shuffling of bytes: part p holds the bytes at positions p, p + parts, p + 2 parts and so on."""
    parts = raw[len(SHUFFLED)] if len(raw) > len(SHUFFLED) else 0
    if not parts:
        raise FormatError(f"artifact: shuffled into 0 parts; {_AGAIN}")
    shuffled = np.frombuffer(raw, np.uint8, offset=len(SHUFFLED) + 1)
    found = np.empty_like(shuffled)
    begin = 0
    for part in range(parts):
        target = found[part::parts]
        target[:] = shuffled[begin : begin + len(target)]
        begin += len(target)
    return found.tobytes()


def _unpickle(raw: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            records = archive.infolist()
    except zipfile.BadZipFile as error:
        raise FormatError(f"artifact: holds no torch.save file ({error}); {_AGAIN}") from error
    # torch.save stores its records as they are; a compressed one would unpack past the bound on memory.
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise FormatError(f"artifact: holds compressed records, which torch.save does not write; {_AGAIN}")
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make the loader raise anything
        reason = why_no_tensors(error)
        raise FormatError(f"artifact: not a torch.save file of plain tensors ({reason}); {_AGAIN}") from error
    tree_map_only(torch.Tensor, lambda tensor: check_storage(tensor, "artifact: a tensor"), found)
    return found
