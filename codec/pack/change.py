"""Replace vectors, steps or tables of a pack; the integers of the matrices stay as they are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from codec.errors import MismatchError
from codec.exact.recall import Recall
from codec.pack.container import read_container, write_container
from codec.pack.header import read_header, write_header
from codec.pack.parts.dtypes import matrix_shape
from codec.pack.parts.part import decode_quantized, quantized_part, read_part
from codec.pack.plan import How, Item
from codec.pack.vectors import batches
from codec.quantization.quantized import Tuning


def with_vectors(blob: bytes, vectors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the pack `blob` with other vectors, the tensors that are not quantized, in half precision.

    Args:
        blob: the bytes of a pack.
        vectors: by name, exactly the pack's.

    Raises:
        MismatchError: other names than the pack's, or other shapes.
        FormatError: not a pack, or values that are not finite.
    """
    sections, header = _opened(blob)
    expected = {entry["name"]: tuple(entry["shape"]) for entry in header["vectors"]}
    if expected != {name: tuple(vector.shape) for name, vector in vectors.items()}:
        raise MismatchError(f"vectors: found {sorted(vectors)}, the pack has {expected}; pass those of its model")
    items = []
    for entry in header["vectors"]:
        how: How = "half" if vectors[entry["name"]].is_floating_point() else "exact"
        items.append(Item(entry["name"], tuple(entry["shape"]), entry["dtype"], "vector", how))
    found = batches(items, vectors, False)
    header["vectors"] = [entry for batch in found for entry in batch.entries]
    header["batches"] = [[len(batch.entries), len(batch.part)] for batch in found]
    matrices = sections["tensors"][: sum(sum(entry["parts"]) for entry in header["tensors"])]
    sections["tensors"] = matrices + b"".join(batch.part for batch in found)
    return write_container({**sections, "header": write_header(header)})


def with_tunings(blob: bytes, tunings: Mapping[str, Tuning]) -> bytes:
    """Return the pack `blob` of a model with other tunings of steps (`codec.quantization.quantized.StepGrid`).

    Args:
        blob: the bytes of a pack with a config, whose matrices have a part each.
        tunings: by name, of matrices with steps by row and column; other matrices stay as they are.

    Raises:
        MismatchError: a name that the pack does not have, a matrix without such steps, or tunings of another size.
        FormatError: not a pack.
    """
    sections, header = _opened(blob)
    names = {entry["name"] for entry in header["tensors"] if len(entry["parts"]) == 1}
    if not names >= set(tunings):
        raise MismatchError(f"tunings of {sorted(set(tunings) - names)}: the pack has no such matrices")
    parts, at = [], 0
    for entry in header["tensors"]:
        length = sum(entry["parts"])
        part, at = sections["tensors"][at : at + length], at + length
        if entry["name"] in tunings:
            matrix = decode_quantized(*read_part(part), *matrix_shape(entry["shape"]))
            tuning = tunings[entry["name"]]
            if not matrix.grid or [len(each) for each in tuning] != list(matrix.symbols.shape):
                raise MismatchError(f"tensor {entry['name']}: it has no steps by row and column, or not so many")
            grid = replace(matrix.grid, tuning=tuning)
            part = quantized_part(replace(matrix, rows=grid.row_steps(), columns=grid.column_steps(), grid=grid))
            entry["parts"] = [len(part)]
        parts.append(part)
    sections["tensors"] = b"".join(parts) + sections["tensors"][at:]
    return write_container({**sections, "header": write_header(header)})


def with_recall(blob: bytes, recall: Recall) -> bytes:
    """Return the pack `blob` with these tables of recall. Raises FormatError for bytes that are no pack."""
    sections, header = _opened(blob)
    header["recall"] = recall.to_json()
    return write_container({**sections, "header": write_header(header)})


def _opened(blob: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    sections = read_container(blob)
    return sections, read_header(sections.get("header", b""), len(blob))
