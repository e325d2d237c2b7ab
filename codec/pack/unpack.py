"""Write the tensors of a pack as a safetensors file, slab by slab, so that a pack larger than memory can be unpacked.

The format is that of safetensors: u64 length, `length` bytes of JSON, then the tensors' bytes.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.errors import FormatError
from codec.files import atomic_write
from codec.pack.parts.dtypes import size_of
from codec.pack.reader import Pack

_NAMES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL", "complex64": "C64"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
}


def save_tensors(pack: Pack, path: Path, metadata: Mapping[str, str] | None) -> None:
    """Write all tensors of a pack to a safetensors file; twins are written twice.

    Args:
        pack: an opened pack.
        path: the file to write; an older file is replaced once the new one is complete.
        metadata: for the file.

    Raises:
        FormatError: a part is damaged, or safetensors files do not have a tensor's dtype.
    """
    entries: dict[str, dict[str, Any]] = {e["name"]: e for e in pack.manifest["tensors"] + pack.manifest["vectors"]}
    entries |= {name: entries[other] for name, other in pack.twins.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, entry in entries.items():
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
        for name in entries:
            for slab in pack.slabs(name):
                file.write(to_bytes(slab).data)
