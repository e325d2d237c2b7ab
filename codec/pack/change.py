"""Replace vectors or tables of a pack; the integers of the matrices stay as they are."""

from collections.abc import Mapping
from typing import Any

import torch

from codec.errors import MismatchError
from codec.exact.recall import Recall
from codec.pack.container import read_container, write_container
from codec.pack.header import read_header, write_header
from codec.pack.plan import How, Item
from codec.pack.vectors import batches


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


def with_recall(blob: bytes, recall: Recall) -> bytes:
    """Return the pack `blob` with these tables of recall. Raises FormatError for bytes that are no pack."""
    sections, header = _opened(blob)
    header["recall"] = recall.to_json()
    return write_container({**sections, "header": write_header(header)})


def _opened(blob: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    sections = read_container(blob)
    return sections, read_header(sections.get("header", b""), len(blob))
