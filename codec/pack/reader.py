"""Reading packs: a pack is a compressed model in one self-contained file (`codec.pack.writer` writes it)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codec.entropy import adaptive_table
from codec.errors import FormatError, MismatchError
from codec.exact.families.weights import AnyWeights, weights_of
from codec.exact.recall import Recall, read_recall
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.config import AnyConfig, read_config
from codec.model.parameters import Role, parameters
from codec.numerics.widths import ARITHMETIC
from codec.pack import context_coder, golden
from codec.pack.container import read_container
from codec.quantization.quantized import OnTrellis, Quantized, StepGrid
from codec.quantization.trellis import CODES
from codec.zstd import unshrink

if TYPE_CHECKING:
    import torch

    from codec.exact.families.transformer import AnyExact

MAX_PARAMETERS = 5 << 27
"""Elements that a pack may claim to hold: 2.5 GiB of float32, the bound on memory for a hostile file."""

MAX_ROWS = 1 << 25
"""Rows that a pack may claim over all matrices: each has a step, even where it has no columns."""

MAX_DIMENSIONS = 64
"""Of a tensor: torch's limit."""

OFF = np.uint16(512)
"""Added to the exponent of the steps of a row or a column that is not on the trellis; exponents are smaller."""

MAX_HEADER = 1 << 24
MAX_TOKENIZER = 1 << 24

TABLES: tuple[Role, ...] = ("embedding", "matrix", "hash")
"""Roles that are quantized; matrices of one role share their adaptive models."""

VECTOR_TYPES = ("float16", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")
"""In which all other tensors are kept."""


@dataclass(frozen=True)
class Pack:
    """An opened pack.

    >>> import torch, codec
    >>> pack = codec.open(codec.compress({"w": torch.eye(128), "b": torch.zeros(128)}))
    >>> pack.config, pack.tokenizer, pack.parameter_count
    (None, None, 16512)
    >>> [entry["name"] for entry in pack.manifest["tensors"] + pack.manifest["vectors"]]
    ['w', 'b']
    """

    config: AnyConfig | None
    tokenizer: AnyTokenizer | None
    manifest: dict[str, Any]  # the JSON header: tensors, vectors, versions
    matrices: dict[str, Quantized]  # flattened to [shape[0], everything else]
    vectors: dict[str, NDArray[Any]]
    sha256: str  # hex, of the whole file
    size: int  # bytes of the file

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """The weights: float32 of row step x integer x column step; vectors as float32, integers as they were.

        >>> import torch, codec
        >>> state = codec.open(codec.compress({"w": torch.eye(128), "n": torch.tensor([3])})).state_dict()
        >>> state["w"].shape, state["n"]
        (torch.Size([128, 128]), tensor([3]))
        """
        import torch

        found: dict[str, torch.Tensor] = {}
        for entry in self.manifest["tensors"]:
            found[entry["name"]] = torch.from_numpy(self.matrices[entry["name"]].dequantize()).reshape(entry["shape"])
        for name, vector in self.vectors.items():
            tensor = torch.from_numpy(vector)
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
        return found

    @property
    def weights(self) -> AnyWeights:
        """What the exact model that codes text is made of. Raises MismatchError for a pack that holds weights only."""
        return weights_of(self.for_text()[0], self.matrices, self.vectors, self.sha256)

    def exact(self, device: "torch.device | str" = "cpu") -> "AnyExact":
        """The exact model that codes text, on torch. Raises MismatchError for a pack that holds weights only.

        >>> from pathlib import Path
        >>> import codec
        >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
        >>> pack.exact().config.vocab_size
        2048
        """
        from codec.exact.families.transformer import exact_model

        return exact_model(self.weights, device)

    def for_text(self) -> tuple[AnyConfig, AnyTokenizer]:
        """What text coding needs beside weights. Raises MismatchError for a pack that holds weights only.

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
    def recall(self) -> Recall | None:
        """The tables of `codec.exact.recall`, if it has any."""
        return read_recall(self.manifest["recall"]) if "recall" in self.manifest else None

    @cached_property
    def parameter_count(self) -> int:
        return sum(prod(e["shape"]) for e in self.manifest["tensors"] + self.manifest["vectors"])


def open(blob: bytes) -> Pack:
    """Read a pack.

    Raises:
        FormatError: not a pack, of a later version, truncated or damaged.
        CodecError: see `codec.pack.golden.check`.

    >>> import torch, codec
    >>> blob = codec.compress({"w": torch.eye(128)})
    >>> codec.open(blob).size == len(blob)
    True
    >>> codec.open(blob[:-1])
    Traceback (most recent call last):
    codec.errors.FormatError: pack: section ...
    """
    golden.check()
    sections = read_container(blob)
    missing = {"header", "config", "tokenizer", "tensors", "scales", "vectors"} - set(sections)
    if missing:
        raise FormatError(f"pack: sections {sorted(missing)} are missing; the file was not written by underpar")
    manifest = parse_header(unshrink(sections["header"], MAX_HEADER, "pack: header"))
    config = None
    if sections["config"]:
        config = read_config(unshrink(sections["config"], MAX_HEADER, "pack: config").decode("utf-8", "replace"))
    tokenizer = None
    if sections["tokenizer"]:
        tokenizer = open_tokenizer(unshrink(sections["tokenizer"], MAX_TOKENIZER, "pack: tokenizer"))
    if config:
        check_shapes(config, {e["name"]: tuple(e["shape"]) for e in manifest["tensors"] + manifest["vectors"]})
        kept = {entry["name"] for entry in manifest["vectors"]}
        misplaced = [name for name, p in parameters(config).items() if (name in kept) != (p.role == "vector")]
        if misplaced:
            raise FormatError(f"pack: matrices kept as vectors, or vectors as matrices: {misplaced[:3]}")
    if config and tokenizer:
        check_vocabulary(config, tokenizer)
    matrices = _read_matrices(manifest, sections)
    vectors = _read_vectors(manifest, sections["vectors"])
    return Pack(config, tokenizer, manifest, matrices, vectors, hashlib.sha256(blob).hexdigest(), len(blob))


def decompress(blob: bytes) -> "dict[str, torch.Tensor]":
    """The state dict of a pack. Raises FormatError as `open` does.

    >>> import torch, codec
    >>> list(codec.decompress(codec.compress({"w": torch.eye(128)})))
    ['w']
    """
    return open(blob).state_dict()


def check_vocabulary(config: AnyConfig, tokenizer: AnyTokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise MismatchError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; pass the model's tokenizer"
        )


def check_shapes(config: AnyConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: parameter.shape for name, parameter in parameters(config).items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise MismatchError(
                f"tensor {name}: found {found.get(name, 'none')}, the config expects {expected.get(name, 'none')}; "
                "pass the state dict and the config of one model"
            )


def _read_steps(entry: dict[str, Any], words: NDArray[np.uint16]) -> Quantized:
    """The matrix of a header entry with its steps and empty symbols; the counterpart of `_write_steps`."""
    rows = entry["shape"][0]
    empty = np.zeros((rows, prod(entry["shape"][1:])), np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        if "unit" not in entry:
            halves = words.view(np.float16).astype(np.float32)
            return Quantized(empty, np.ldexp(halves, max(-200, min(200, entry["exponent"]))), None, entry["states"])
        if words.max(initial=0) >= 2 * OFF:
            raise FormatError(f"pack: step {words.max()} of tensor {entry['name']}, expected less than {2 * OFF}")
        exponents, on = (words % OFF).astype(np.int32), words < OFF
        grid = StepGrid(entry["unit"], exponents[:rows] + entry["least"][0], exponents[rows:] + entry["least"][1])
        visited = OnTrellis(on[:rows], on[rows:]) if entry["states"] else None
        return Quantized(empty, grid.row_steps(), grid.column_steps(), entry["states"], grid, visited)


def parse_header(text: bytes) -> dict[str, Any]:
    """The JSON header, every field that is used later checked."""
    try:
        header = json.loads(text)
        if header["arithmetic"] != ARITHMETIC:
            raise FormatError(f"pack: arithmetic version {header['arithmetic']!r}, this underpar computes {ARITHMETIC}")
        for entry in header["tensors"]:
            _check_entry(entry, entry["role"] in TABLES and len(entry["shape"]) > 0 and _good_steps(entry))
        for entry in header["vectors"]:
            _check_entry(entry, entry["dtype"] in VECTOR_TYPES)
        entries = header["tensors"] + header["vectors"]
        if len({entry["name"] for entry in entries}) != len(entries):
            raise FormatError("pack: header names a tensor twice")
        if "recall" in header:
            read_recall(header["recall"])
        total = sum(prod(max(1, n) for n in entry["shape"]) for entry in entries)  # rows of nothing have steps, too
        if total > MAX_PARAMETERS:
            raise FormatError(f"pack: header claims {total} parameters, expected at most {MAX_PARAMETERS}")
        rows = sum(entry["shape"][0] for entry in header["tensors"] if entry["shape"])
        if rows > MAX_ROWS:
            raise FormatError(f"pack: header claims {rows} rows of matrices, expected at most {MAX_ROWS}")
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"pack: header is not what underpar writes ({error!r})") from error
    return header


def _check_entry(entry: dict[str, Any], good: bool) -> None:
    entry["name"].encode()  # refuses lone surrogates
    shape = entry["shape"]
    sized = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    if not (good and sized and all(type(n) is int and 0 <= n <= MAX_PARAMETERS for n in shape)):
        raise FormatError(f"pack: header entry {str(entry)[:200]} is not what underpar writes")


def _good_steps(entry: dict[str, Any]) -> bool:
    """Whether the fields of `_write_steps` and of the context coder are there and in range."""
    steps = entry["least"] if "unit" in entry else [entry["exponent"]]
    numbers = [entry["typical"], entry["bits"], entry["states"], *steps]
    whole = all(type(n) is int and abs(n) < 1 << 40 for n in numbers)
    grid = "unit" not in entry or (
        type(entry["unit"]) is float and len(entry["least"]) == 2 and all(abs(n) < 1 << 15 for n in entry["least"])
    )
    known = entry["states"] == 0 or entry["states"] in CODES
    return whole and grid and known and 0 <= entry["typical"] < 1 << 10 and entry["bits"] >= 0


def _read_matrices(manifest: dict[str, Any], sections: dict[str, bytes]) -> dict[str, Quantized]:
    entries = manifest["tensors"]
    counts = [e["shape"][0] + (prod(e["shape"][1:]) if "unit" in e else 0) for e in entries]
    words = adaptive_table.decode_words(sections["scales"], sum(counts))
    matrices, at = {}, 0
    for entry, count in zip(entries, counts, strict=True):
        matrix = matrices[entry["name"]] = _read_steps(entry, words[at : at + count])
        at += count
        columns = np.ones(1) if matrix.columns is None else matrix.columns
        if not (np.isfinite(matrix.rows).all() and np.isfinite(columns).all()):
            raise FormatError(
                f"pack: tensor {entry['name']}: steps are not finite; the file was not written by underpar"
            )
    parts = [(TABLES.index(e["role"]), matrices[e["name"]], e["typical"]) for e in entries]
    context_coder.decode_matrices(sections["tensors"], parts, len(TABLES))
    return matrices


def _read_vectors(manifest: dict[str, Any], section: bytes) -> dict[str, NDArray[Any]]:
    sizes = [prod(e["shape"]) * np.dtype(e["dtype"]).itemsize for e in manifest["vectors"]]
    data = unshrink(section, sum(sizes), "pack: vectors")
    if len(data) != sum(sizes):
        raise FormatError(f"pack: vectors section holds {len(data)} bytes, the header says {sum(sizes)}")
    vectors, offset = {}, 0
    for entry, size in zip(manifest["vectors"], sizes, strict=True):
        raw = np.frombuffer(data, np.dtype(entry["dtype"]).newbyteorder("<"), prod(entry["shape"]), offset)
        if not np.isfinite(raw).all():
            raise FormatError(f"pack: vector {entry['name']}: not all values are finite")
        vectors[entry["name"]] = raw.reshape(entry["shape"]).copy()
        offset += size
    return vectors
