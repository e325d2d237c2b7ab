"""Take the tensors out of a pack slab by slab, so that a pack larger than memory can be unpacked and compared.

Files have the layout of the safetensors format: u64 length, that many bytes of JSON, then the tensors' bytes.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.console import Advance, ignore_progress
from codec.errors import FormatError, MismatchError
from codec.files import atomic_write
from codec.model.weight_files import INDEX
from codec.pack.parts.dtypes import size_of
from codec.pack.reader import Pack
from codec.run_folder import WEIGHTS

if TYPE_CHECKING:
    import torch

_NAMES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL", "complex64": "C64"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
}


def save_weights(
    pack: Pack, folder: Path, metadata: Mapping[str, str] | None, advance: Advance = ignore_progress
) -> None:
    """Write all tensors of a pack into a folder: as the shards of the index that travels with it, or as one file.

    Args:
        pack: an opened pack. Tensors that were left out of it are left out of the index, too.
        folder: of the files.
        metadata: of each file.
        advance: called with the number of elements done.

    Raises:
        FormatError: an index that is not of this pack, and as for `save_tensors`.
    """
    if INDEX not in pack.files:
        save_tensors(pack, folder / WEIGHTS, metadata, advance=advance)
        return
    names = set(pack.names)
    try:
        index = json.loads(pack.files[INDEX])
        homes = {name: home for name, home in index["weight_map"].items() if name in names}
        alien = [home for home in homes.values() if Path(home).name != home or Path(home).suffix != ".safetensors"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"pack: file {INDEX} is no index ({error!r}); unpack into one .safetensors file") from error
    if alien or homes.keys() != names:
        raise FormatError(f"pack: file {INDEX} is of other tensors or files; unpack into one .safetensors file")
    for home in sorted(set(homes.values())):
        save_tensors(pack, folder / home, metadata, [name for name in pack.names if homes[name] == home], advance)
    (folder / INDEX).write_text(json.dumps({**index, "weight_map": homes}, indent=2) + "\n")


def save_tensors(
    pack: Pack,
    path: Path,
    metadata: Mapping[str, str] | None,
    names: Sequence[str] | None = None,
    advance: Advance = ignore_progress,
) -> None:
    """Write tensors of a pack to a safetensors file; twins are written twice.

    Args:
        pack: an opened pack.
        path: the file to write; an older file is replaced once the new one is complete.
        metadata: for the file.
        names: the tensors to write; None: all.
        advance: called with the number of elements done.

    Raises:
        FormatError: a part is damaged, or safetensors files do not have a tensor's dtype.
    """
    entries = _entries(pack)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chosen = pack.names if names is None else names
    at = 0
    for name in chosen:
        entry = entries[name]
        if entry["dtype"] not in _NAMES:
            raise FormatError(f"tensor {name}: safetensors files have no {entry['dtype']}; read it by codec.decompress")
        size = size_of(entry["dtype"], entry["shape"])
        header[name] = {"dtype": _NAMES[entry["dtype"]], "shape": entry["shape"], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    from codec.pack.parts.tensors import to_bytes  # torch takes seconds to import

    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in chosen:
            for slab in pack.slabs(name):
                file.write(to_bytes(slab).data)
                advance(slab.numel())


def relative_errors(
    pack: Pack, source: "Mapping[str, torch.Tensor]", advance: Advance = ignore_progress
) -> dict[str, tuple[float, float]]:
    """Return each tensor's squared error and squared norm, by name; those of a model's vectors and integers, too.

    Args:
        pack: an opened pack.
        source: the tensors that were packed, and perhaps others; each is read once.
        advance: called with the number of elements done.

    Raises:
        MismatchError: a tensor that the source lacks, or has in another shape.
        FormatError: a damaged part.
    """
    import torch

    found = {}
    for name, entry in _entries(pack).items():
        if name not in source or list(source[name].shape) != entry["shape"]:
            there = f"shape {tuple(source[name].shape)}" if name in source else "none"
            raise MismatchError(f"tensor {name}: shape {tuple(entry['shape'])} in the pack, the source has {there}")
        whole, at, sums = source[name].detach().cpu().reshape(-1), 0, [0.0, 0.0]
        wide = torch.complex128 if whole.is_complex() else torch.float64
        for slab in pack.slabs(name):
            truth = whole[at : at + slab.numel()].to(wide)
            finite = torch.isfinite(truth)
            for i, values in enumerate(((slab.reshape(-1).to(wide) - truth)[finite], truth[finite])):
                sums[i] += float(values.abs().square().sum())
            at += slab.numel()
            advance(slab.numel())
        found[name] = sums[0], sums[1]
    return found


def _entries(pack: Pack) -> dict[str, dict[str, Any]]:
    """Return the header's entry of every tensor; a twin has that of the tensor that it equals."""
    entries: dict[str, dict[str, Any]] = {e["name"]: e for e in pack.manifest["tensors"] + pack.manifest["vectors"]}
    return entries | {name: entries[other] for name, other in pack.twins.items()}
