"""A pack: a compressed model in one self-contained file. `compress` writes it, `open` and `decompress` read it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec import exact, quantize, symbols
from codec.config import ModelConfig
from codec.container import read_container, shrink, unshrink, write_container
from codec.errors import BudgetError, FormatError, MismatchError
from codec.parameters import Role, parameters
from codec.quantized import Quantized
from codec.tokenizer import Tokenizer

MAX_PARAMETERS = 1 << 28
"""Elements that a pack may claim to hold: 1 GiB of float32, the bound on memory for a hostile file."""

MAX_DIMENSIONS = 64
"""Of a tensor: torch's limit."""

MAX_HEADER = 1 << 24
MAX_TOKENIZER = 1 << 24

SMALL = 4096
"""In a plain state dict, tensors of fewer elements are kept as float16 vectors; the challenge's limit is 65,536 at
512 columns, which would leave the projections of a small model unquantized."""

WIDTHS: tuple[dict[Role, int], ...] = (
    {"embedding": 8, "matrix": 8, "hash": 8},
    {"embedding": 8, "matrix": 6, "hash": 6},
    {"embedding": 6, "matrix": 6, "hash": 6},
)
"""Bits of `quantize.RowAbsmax` for each role, from the finest to the coarsest that a budget may ask for."""

_TABLES: tuple[Role, ...] = ("embedding", "matrix", "hash")
_VECTOR_TYPES = ("float16", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Pack:
    """An opened pack."""

    config: ModelConfig | None
    tokenizer: Tokenizer | None
    manifest: dict[str, Any]  # the JSON header: tensors, vectors, versions
    matrices: dict[str, Quantized]  # flattened to [shape[0], everything else]
    vectors: dict[str, NDArray[Any]]
    sha256: str  # hex, of the whole file
    size: int  # bytes of the file

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights: float32 of row step x integer x column step; vectors as float32, integers as they were."""
        found: dict[str, torch.Tensor] = {}
        for entry in self.manifest["tensors"]:
            found[entry["name"]] = torch.from_numpy(self.matrices[entry["name"]].dequantize()).reshape(entry["shape"])
        for name, vector in self.vectors.items():
            tensor = torch.from_numpy(vector)
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
        return found

    def exact(self, device: torch.device | str = "cpu") -> exact.ExactModel:
        """The exact model that codes text. Raises MismatchError for a pack that holds weights only."""
        if self.config is None or self.tokenizer is None:
            raise MismatchError(
                "pack: it holds weights only, text coding needs a config and a tokenizer; pack a run folder"
            )
        return exact.ExactModel(self.config, self.matrices, self.vectors, device)

    @cached_property
    def parameter_count(self) -> int:
        return sum(prod(e["shape"]) for e in self.manifest["tensors"] + self.manifest["vectors"])


def compress(
    state_dict: Mapping[str, torch.Tensor],
    config: ModelConfig | None = None,
    tokenizer: Tokenizer | bytes | None = None,
    budget: int | None = None,
) -> bytes:
    """Compress a model into the bytes of a pack.

    Args:
        state_dict: the weights. With a config, exactly the tensors of `codec.parameters.parameters(config)`.
        config: the model's shape; without it the pack holds weights only.
        tokenizer: a Tokenizer or the content of a SentencePiece `.model`.
        budget: the largest allowed size of the pack in bytes. The finest widths of `WIDTHS` that fit are taken.

    Returns:
        The pack: the same bytes for the same input on every machine.

    Raises:
        BudgetError: no widths fit the budget; `.smallest` says what was reached.
        MismatchError: state dict and config, or config and tokenizer, do not belong together.
        FormatError: weights that are not finite.

    >>> import torch, codec
    >>> blob = codec.compress({"w": 127 * torch.eye(128)})
    >>> torch.equal(codec.decompress(blob)["w"], 127 * torch.eye(128))
    True
    """
    if isinstance(tokenizer, bytes):
        tokenizer = Tokenizer(tokenizer)
    roles = _roles(state_dict, config)
    if config and tokenizer:
        _check_vocabulary(config, tokenizer)
    smallest = None
    for widths in WIDTHS:
        blob = _build(state_dict, roles, widths, config, tokenizer)
        if budget is None or len(blob) <= budget:
            return blob
        smallest = min(smallest or len(blob), len(blob))
    assert smallest is not None
    raise BudgetError(
        f"budget of {budget} bytes: the smallest pack reached has {smallest}; raise the budget or shrink the model",
        smallest,
    )


def open(blob: bytes) -> Pack:
    """Read a pack.

    Raises:
        FormatError: not a pack, of a later version, truncated or damaged.
    """
    sections = read_container(blob)
    missing = {"header", "config", "tokenizer", "tensors", "scales", "vectors"} - set(sections)
    if missing:
        raise FormatError(f"pack: sections {sorted(missing)} are missing; the file was not written by underpar")
    manifest = _parse_header(unshrink(sections["header"], MAX_HEADER, "pack: header"))
    config = None
    if sections["config"]:
        config = ModelConfig.from_json(
            unshrink(sections["config"], MAX_HEADER, "pack: config").decode("utf-8", "replace")
        )
    tokenizer = None
    if sections["tokenizer"]:
        tokenizer = Tokenizer(unshrink(sections["tokenizer"], MAX_TOKENIZER, "pack: tokenizer"))
    matrices = _read_matrices(manifest, sections)
    vectors = _read_vectors(manifest, sections["vectors"])
    if config:
        _check_shapes(config, {e["name"]: tuple(e["shape"]) for e in manifest["tensors"] + manifest["vectors"]})
        misplaced = [name for name, p in parameters(config).items() if (name in vectors) != (p.role == "vector")]
        if misplaced:
            raise FormatError(f"pack: matrices kept as vectors, or vectors as matrices: {misplaced[:3]}")
    if config and tokenizer:
        _check_vocabulary(config, tokenizer)
    return Pack(config, tokenizer, manifest, matrices, vectors, hashlib.sha256(blob).hexdigest(), len(blob))


def decompress(blob: bytes) -> dict[str, torch.Tensor]:
    """The state dict of a pack. Raises FormatError as `open` does."""
    return open(blob).state_dict()


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise MismatchError(
            f"tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; pass the model's tokenizer"
        )


def _check_shapes(config: ModelConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: parameter.shape for name, parameter in parameters(config).items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise MismatchError(
                f"tensor {name}: found {found.get(name, 'none')}, the config expects {expected.get(name, 'none')}; "
                "pass the state dict and the config of one model"
            )


def _roles(state_dict: Mapping[str, torch.Tensor], config: ModelConfig | None) -> dict[str, Role]:
    """The role of each tensor, in the order of the pack."""
    if config:
        _check_shapes(config, {name: tuple(tensor.shape) for name, tensor in state_dict.items()})
        return {name: parameter.role for name, parameter in parameters(config).items()}
    roles: dict[str, Role] = {}
    for name, tensor in sorted(state_dict.items()):
        matrix = tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= SMALL
        roles[name] = "matrix" if matrix else "vector"
    return roles


def _build(
    state_dict: Mapping[str, torch.Tensor],
    roles: Mapping[str, Role],
    widths: Mapping[Role, int],
    config: ModelConfig | None,
    tokenizer: Tokenizer | None,
) -> bytes:
    tensors, vectors, parts = [], [], []
    scales, vector_bytes = b"", b""
    for name, role in roles.items():
        tensor = state_dict[name].detach().cpu()
        if role == "vector":
            values = _vector(name, tensor)
            vectors.append({"name": name, "shape": list(tensor.shape), "dtype": str(values.dtype)})
            vector_bytes += values.tobytes()
            continue
        flat = tensor.float().reshape(tensor.shape[0], -1).numpy()
        quantized = quantize.RowAbsmax(widths[role])(name, flat)
        exponent = quantize.step_exponent(quantized.rows)
        scales += np.ldexp(quantized.rows, -exponent).astype("<f2").tobytes()
        parts.append((_TABLES.index(role), quantized.symbols))
        tensors.append({"name": name, "shape": list(tensor.shape), "role": role, "exponent": exponent})
    alphabets = [_alphabet([s for i, s in parts if i == table]) for table in range(len(_TABLES))]
    stream, bits = symbols.encode_symbols(parts, alphabets)
    for entry, cost in zip(tensors, bits, strict=True):
        entry["bits"] = round(cost)
    header = {
        "arithmetic": exact.ARITHMETIC,
        "alphabets": [[a.low, a.high] for a in alphabets],
        "tensors": tensors,
        "vectors": vectors,
    }
    return write_container(
        {
            "header": shrink(json.dumps(header, separators=(",", ":")).encode()),
            "config": shrink(config.to_json().encode()) if config else b"",
            "tokenizer": shrink(tokenizer.model) if tokenizer else b"",
            "tensors": stream,
            "scales": symbols.encode_words(np.frombuffer(scales, "<u2")),
            "vectors": shrink(vector_bytes),
        }
    )


def _alphabet(arrays: list[NDArray[np.int32]]) -> symbols.Alphabet:
    filled = [a for a in arrays if a.size]
    if not filled:
        return symbols.Alphabet(0, 0)
    return symbols.Alphabet(int(min(a.min() for a in filled)), int(max(a.max() for a in filled)))


def _vector(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    """A vector as it is kept: float16, float32 where float16 would overflow, integers unchanged; little-endian."""
    if tensor.is_floating_point():
        values = tensor.double().numpy()
        if not np.isfinite(values).all():
            raise FormatError(f"tensor {name}: not all values are finite; repair the checkpoint")
        if np.abs(values).max(initial=0) < 65_504:
            return values.astype("<f2")
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise FormatError(f"tensor {name}: {np.abs(values).max():.3g} is too large for float32")
        return values.astype("<f4")
    values = tensor.numpy()
    if str(values.dtype) not in _VECTOR_TYPES:
        raise FormatError(f"tensor {name}: dtype {values.dtype}, expected floating point or one of {_VECTOR_TYPES[2:]}")
    return values


def _parse_header(text: bytes) -> dict[str, Any]:
    """The JSON header, every field that is used later checked."""
    try:
        header = json.loads(text)
        arithmetic, alphabets = header["arithmetic"], header["alphabets"]
        if arithmetic != exact.ARITHMETIC:
            raise FormatError(f"pack: arithmetic version {arithmetic!r}, this underpar computes {exact.ARITHMETIC}")
        total = 0
        for kind in ("tensors", "vectors"):
            for entry in header[kind]:
                sizes = entry["shape"]
                entry["name"].encode()  # refuses lone surrogates
                well_formed = isinstance(sizes, list) and len(sizes) <= MAX_DIMENSIONS
                if not (well_formed and all(type(n) is int and 0 <= n <= MAX_PARAMETERS for n in sizes)):
                    raise FormatError(f"pack: header entry {str(entry)[:200]}, expected a name and a shape")
                total += prod(max(1, n) for n in sizes)  # rows without columns have steps, too
                if kind == "tensors":
                    numbers = type(entry["exponent"]) is type(entry["bits"]) is int and 0 <= entry["bits"] < 1 << 40
                    if entry["role"] not in _TABLES or not numbers or not sizes:
                        raise FormatError(f"pack: header entry {entry!r}, expected a matrix with role and exponent")
                elif entry["dtype"] not in _VECTOR_TYPES:
                    raise FormatError(f"pack: header entry {entry!r}, expected one of {_VECTOR_TYPES}")
        names = [entry["name"] for kind in ("tensors", "vectors") for entry in header[kind]]
        if len(set(names)) != len(names):
            raise FormatError("pack: header names a tensor twice")
        if total > MAX_PARAMETERS:
            raise FormatError(f"pack: header claims {total} parameters, expected at most {MAX_PARAMETERS}")
        header["alphabets"] = [[int(low), int(high)] for low, high in alphabets]
        if len(header["alphabets"]) != len(_TABLES):
            raise FormatError(f"pack: header has {len(alphabets)} alphabets, expected {len(_TABLES)}")
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"pack: header is not what underpar writes ({error!r})") from error
    return header


def _read_matrices(manifest: dict[str, Any], sections: dict[str, bytes]) -> dict[str, Quantized]:
    alphabets = [symbols.Alphabet(low, high) for low, high in manifest["alphabets"]]
    entries = manifest["tensors"]
    parts = [(_TABLES.index(e["role"]), prod(e["shape"])) for e in entries]
    arrays = symbols.decode_symbols(sections["tensors"], parts, alphabets)
    halves = symbols.decode_words(sections["scales"], sum(e["shape"][0] for e in entries)).view("<f2")
    matrices, row = {}, 0
    for entry, array in zip(entries, arrays, strict=True):
        rows = entry["shape"][0]
        with np.errstate(over="ignore"):
            steps = np.ldexp(halves[row : row + rows].astype(np.float32), max(-200, min(200, entry["exponent"])))
        if not np.isfinite(steps).all():
            raise FormatError(
                f"pack: tensor {entry['name']}: steps are not finite; the file was not written by underpar"
            )
        matrices[entry["name"]] = Quantized(array.reshape(rows, prod(entry["shape"][1:])), steps)
        row += rows
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
