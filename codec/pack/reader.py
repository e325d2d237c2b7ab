"""Read packs: a pack is a compressed model in one self-contained file (`codec.pack.writer` writes packs)."""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from codec.devices import compute_threads, thread_pool
from codec.errors import FormatError, MismatchError
from codec.exact.families.weights import AnyWeights, weights_of
from codec.exact.recall import Recall, read_recall
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.config import AnyConfig, read_config
from codec.model.parameters import parameters
from codec.pack import golden
from codec.pack.container import Section, Source, check_digest, open_source, read_section, read_table
from codec.pack.header import check_shapes, check_vocabulary, most_of, read_header
from codec.pack.parts import decoded
from codec.pack.parts.batches import read_batch
from codec.pack.parts.dtypes import FLOATS, size_of, slabs, width_of
from codec.pack.parts.part import EXACT, decode_exact, decode_quantized, read_part
from codec.quantization.quantized import Quantized
from codec.zstd import unshrink

if TYPE_CHECKING:  # coding text needs no torch, which takes seconds to import
    import torch

    from codec.exact.families.transformer import AnyExact

MAX_CONFIG = 1 << 16
"""Bytes of a config: those of underpar have less than 2,000."""

MAX_TOKENIZER, TOKENIZER, TOKENIZER_A_BYTE = 1 << 24, 1 << 16, 32
"""Bytes of a tokenizer at most, those that it may have at any rate, and how many more for each byte of its section."""


@dataclass(frozen=True, eq=False)
class Pack:
    """An opened pack. Tensors are decoded when they are asked for; packs are equal if their files are equal.

    >>> import torch, codec
    >>> pack = codec.open(codec.compress({"w": torch.eye(128), "b": torch.zeros(128)}))
    >>> pack.config, pack.tokenizer, pack.parameter_count
    (None, None, 16512)
    >>> pack.names
    ['w', 'b']
    """

    config: AnyConfig | None
    tokenizer: AnyTokenizer | None
    manifest: dict[str, Any]  # the JSON header: tensors, vectors, batches, twins
    source: Source
    sections: dict[str, Section]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pack) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def size(self) -> int:
        """Return the bytes of the file."""
        return self.source.size

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the whole file in hex. Raises FormatError for a damaged file."""
        return check_digest(self.source)

    @property
    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return [*(entry["name"] for entry in self._entries), *self.twins]

    @property
    def twins(self) -> dict[str, str]:
        """Return the name of the stored tensor for each tensor that is stored as another one."""
        return cast(dict[str, str], self.manifest.get("twins", {}))

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata of the safetensors file that the weights came from."""
        return cast(dict[str, str], self.manifest.get("metadata", {}))

    @property
    def files(self) -> dict[str, bytes]:
        """Return the other files of the model's folder by name. Raises FormatError for a damaged section."""
        lengths: dict[str, int] = self.manifest.get("files", {})
        if not lengths:
            return {}
        total = sum(lengths.values())
        content = unshrink(read_section(self.source, self.sections, "files"), total, "pack: files")
        if len(content) != total:
            raise FormatError(f"pack: files of {len(content)} bytes, the header says {total}")
        found, at = {}, 0
        for name, length in lengths.items():
            found[name], at = content[at : at + length], at + length
        return found

    def tensor(self, name: str) -> "torch.Tensor":
        """Decode a tensor, in the dtype that it had.

        Raises:
            KeyError: there is no tensor of this name.
            FormatError: a part is damaged.

        >>> import torch, codec
        >>> codec.open(codec.compress({"w": torch.eye(128), "n": torch.tensor([3])})).tensor("n")
        tensor([3])
        """
        name = self.twins.get(name, name)
        if name in self._places:
            entry, offset = self._places[name]
            return self._decode(entry, offset)
        entries, offset, length = self._batch_of[name]
        return self._small(entries, offset, length)[name]

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Decode all tensors, in the dtypes that they had. Twins share their memory. Each call makes new tensors.

        Raises:
            FormatError: a part is damaged.

        >>> import torch, codec
        >>> state = codec.open(codec.compress({"w": torch.eye(128), "n": torch.tensor([3])})).state_dict()
        >>> state["w"].shape, state["n"]
        (torch.Size([128, 128]), tensor([3]))
        """
        names = [entry["name"] for entry in self.manifest["tensors"]]
        with thread_pool(compute_threads()) as pool:
            found = dict(zip(names, pool.map(self.tensor, names), strict=True))
        for batch in self._batches:
            found |= self._small(*batch)
        return found | {name: found[other] for name, other in self.twins.items()}

    @property
    def weights(self) -> AnyWeights:
        """Return the integers, steps and vectors that exact models are made of.

        Raises:
            MismatchError: the pack holds weights only.
            FormatError: a part is damaged.
        """
        return weights_of(self.for_text()[0], self._integers(), self.vectors, self.sha256)

    def exact(self, device: "torch.device | str" = "cpu") -> "AnyExact":
        """Make the exact model on torch, which codes text. Raises MismatchError for a pack that holds weights only.

        >>> from pathlib import Path
        >>> import codec
        >>> pack = codec.open(Path("artifacts/models/small.pack"))
        >>> pack.exact().config.vocab_size
        2048
        """
        from codec.exact.families.transformer import exact_model

        return exact_model(self.weights, device)

    def for_text(self) -> tuple[AnyConfig, AnyTokenizer]:
        """Return the config and the tokenizer, to code text. Raises MismatchError for a pack that holds weights only.

        >>> import torch, codec
        >>> codec.open(codec.compress({"w": torch.eye(128)})).for_text()
        Traceback (most recent call last):
        codec.errors.MismatchError: pack: it holds weights only, ...
        """
        if self.config is None or self.tokenizer is None:
            raise MismatchError(
                "pack: it holds weights only, text coding needs a config and a tokenizer; pack a run folder"
            )
        return self.config, self.tokenizer

    @cached_property
    def matrices(self) -> dict[str, Quantized]:
        """Return the integers and steps of tensors that are quantized in one piece, by name.

        Raises:
            FormatError: a part is damaged.
        """
        names = [entry["name"] for entry in self.manifest["tensors"] if len(entry["parts"]) == 1]
        with thread_pool(compute_threads()) as pool:
            found = zip(names, pool.map(self._matrix, names), strict=True)
            return {name: matrix for name, matrix in found if matrix is not None}

    def _integers(self) -> dict[str, Quantized]:
        """Return `matrices` without trellises and grids; those of packs of medium size come from the cache."""
        if self.parameter_count not in decoded.WORTH:
            return self.matrices
        return decoded.cached(self.sha256, lambda: self.matrices)

    @cached_property
    def vectors(self) -> dict[str, NDArray[Any]]:
        """Return the tensors of batches as they were kept, by name; bfloat16 and narrower dtypes as float32.

        Raises:
            FormatError: a part is damaged, or a model has values that are not finite.
        """
        found: dict[str, NDArray[Any]] = {}
        for entries, offset, length in self._batches:
            found.update((kept.name, kept.array()) for kept in read_batch(self._read(offset, length), entries))
        for name, values in found.items():
            if self.config and not np.isfinite(values).all():
                raise FormatError(f"pack: vector {name}: not all values are finite")
        return found

    @cached_property
    def recall(self) -> Recall | None:
        """Return the tables of `codec.exact.recall`; None if the pack has none."""
        return read_recall(self.manifest["recall"]) if "recall" in self.manifest else None

    @cached_property
    def parameter_count(self) -> int:
        """Return the number of elements of all tensors; twins count once."""
        return sum(prod(entry["shape"]) for entry in self._entries)

    @property
    def _entries(self) -> list[dict[str, Any]]:
        return [*self.manifest["tensors"], *self.manifest["vectors"]]

    @cached_property
    def _places(self) -> dict[str, tuple[dict[str, Any], int]]:
        """Return the header's entry and the offset of each tensor with parts of its own, by name."""
        found, at = {}, 0
        for entry in self.manifest["tensors"]:
            found[entry["name"]] = entry, at
            at += sum(entry["parts"])
        return found

    @cached_property
    def _batches(self) -> list[tuple[list[dict[str, Any]], int, int]]:
        """Return the entries, offset and length of each batch."""
        found, first = [], 0
        at = sum(sum(entry["parts"]) for entry in self.manifest["tensors"])
        for count, length in self.manifest["batches"]:
            found.append((self.manifest["vectors"][first : first + count], at, length))
            first, at = first + count, at + length
        return found

    @cached_property
    def _batch_of(self) -> dict[str, tuple[list[dict[str, Any]], int, int]]:
        return {entry["name"]: batch for batch in self._batches for entry in batch[0]}

    def _read(self, offset: int, length: int) -> bytes:
        return self.source.read(self.sections["tensors"].offset + offset, length)

    def slabs(self, name: str) -> "Iterator[torch.Tensor]":
        """Yield a tensor in slabs [rows, columns], in the order of its elements.

        Raises:
            FormatError: a part is damaged.
        """
        name = self.twins.get(name, name)
        if name not in self._places:
            yield self.tensor(name)
            return
        entry, at = self._places[name]
        for (_, rows, columns), length in zip(
            slabs(entry["shape"], most_of(self.manifest)), entry["parts"], strict=True
        ):
            yield self._slab(entry, at, length, rows, columns)
            at += length

    def _small(self, entries: list[dict[str, Any]], offset: int, length: int) -> "dict[str, torch.Tensor]":
        from codec.pack.parts.tensors import TYPES, from_bytes

        kinds = {entry["name"]: TYPES[entry["dtype"]] for entry in entries}
        batch = read_batch(self._read(offset, length), entries)
        return {k.name: from_bytes(k.data, k.dtype, k.shape).to(kinds[k.name]) for k in batch}

    def _decode(self, entry: dict[str, Any], offset: int) -> "torch.Tensor":
        if len(entry["parts"]) == 1:
            return next(self.slabs(entry["name"])).reshape(entry["shape"])
        import torch

        from codec.pack.parts.tensors import TYPES

        whole = torch.empty(prod(entry["shape"]), dtype=TYPES[entry["dtype"]])
        at = 0
        for piece in self.slabs(entry["name"]):
            whole[at : at + piece.numel()] = piece.reshape(-1)
            at += piece.numel()
        return whole.reshape(entry["shape"])

    def _slab(self, entry: dict[str, Any], offset: int, length: int, rows: int, columns: int) -> "torch.Tensor":
        import torch

        from codec.pack.parts.tensors import cast_weights, from_bytes

        dtype = entry["dtype"]
        with _named(entry["name"]):
            tag, content = read_part(self._read(offset, length))
            if tag == EXACT:
                data = decode_exact(content, size_of(dtype, (rows, columns)), width_of(dtype), dtype in FLOATS)
                return from_bytes(data, dtype, (rows, columns))
            if dtype not in FLOATS:
                raise FormatError(f"quantized {dtype}; the file was not written by underpar")
            return cast_weights(torch.from_numpy(decode_quantized(tag, content, rows, columns).dequantize()), dtype)

    def _matrix(self, name: str) -> Quantized | None:
        entry, offset = self._places[name]
        with _named(name):
            tag, content = read_part(self._read(offset, entry["parts"][0]))
            if tag != EXACT:
                ((_, rows, columns),) = slabs(entry["shape"], most_of(self.manifest))
                return decode_quantized(tag, content, rows, columns)
            if self.config:
                raise FormatError("a matrix that is not quantized; the file was not written by underpar")
            return None


class _named:
    """A context that puts a tensor's name before the message of a FormatError."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FormatError):
            raise FormatError(f"pack: tensor {self._name}: {error}") from error


def open(source: bytes | bytearray | memoryview | mmap.mmap | str | Path | BinaryIO) -> Pack:
    """Open a pack.

    Args:
        source: bytes, a path, or a file that is open for reading.

    Raises:
        FormatError: there is no such file, or it is no pack, of another version, truncated or damaged. Of a file larger
            than `codec.pack.container.IN_MEMORY` only the header is checked here, and each tensor when it is asked for.
        CodecError: see `codec.pack.golden.check`.

    >>> import torch, codec
    >>> blob = codec.compress({"w": torch.eye(128)})
    >>> codec.open(blob).size == len(blob)
    True
    >>> codec.open(blob[:-1])
    Traceback (most recent call last):
    codec.errors.FormatError: pack: ...
    """
    golden.check_once()
    found = open_source(source)
    sections = read_table(found)
    in_memory = isinstance(found.content, bytes)
    if in_memory:
        for name in sections:
            read_section(found, sections, name)
    manifest = read_header(read_section(found, sections, "header"), found.size)
    parts = sum(sum(entry["parts"]) for entry in manifest["tensors"]) + sum(n for _, n in manifest["batches"])
    if "tensors" not in sections or parts != sections["tensors"].length:
        raise FormatError(f"pack: section 'tensors' is missing or not of the {parts} bytes that the header says")
    config = tokenizer = None
    if text := read_section(found, sections, "config"):
        config = read_config(unshrink(text, MAX_CONFIG, "pack: config").decode("utf-8", "replace"))
    if text := read_section(found, sections, "tokenizer"):
        most = min(MAX_TOKENIZER, TOKENIZER + TOKENIZER_A_BYTE * len(text))
        tokenizer = open_tokenizer(unshrink(text, most, "pack: tokenizer"))
    if config:
        _check_model(config, manifest)
    if config and tokenizer:
        check_vocabulary(config, tokenizer)
    pack = Pack(config, tokenizer, manifest, found, sections)
    if in_memory:
        _ = pack.sha256
    return pack


def decompress(source: bytes | str | Path | BinaryIO) -> "dict[str, torch.Tensor]":
    """Return the state dict of a pack. Raises FormatError as `open` does.

    >>> import torch, codec
    >>> list(codec.decompress(codec.compress({"w": torch.eye(128)})))
    ['w']
    """
    return open(source).state_dict()


def _check_model(config: AnyConfig, manifest: Mapping[str, Any]) -> None:
    """Raise MismatchError or FormatError unless the tensors are the config's, and each matrix has a part of its own."""
    entries = manifest["tensors"] + manifest["vectors"]
    check_shapes(config, {e["name"]: tuple(e["shape"]) for e in entries})
    kept = {entry["name"] for entry in manifest["vectors"]}
    floating = all(e.get("kept", e["dtype"]) in FLOATS and e["dtype"] in FLOATS for e in entries)
    misplaced = [name for name, p in parameters(config).items() if (name in kept) != (p.role == "vector")]
    if misplaced or not floating or manifest.get("twins") or manifest.get("whole") is not True:
        raise FormatError(f"pack: matrices kept as vectors, or vectors as matrices: {misplaced[:3]}")
