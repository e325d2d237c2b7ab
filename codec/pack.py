"""A pack: a compressed model in one self-contained file. `compress` writes it, `open` and `decompress` read it."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from codec import contexts, exact, symbols
from codec.calibration import Calibration, moments_of
from codec.config import ModelConfig
from codec.container import read_container, shrink, unshrink, write_container
from codec.errors import FormatError, MismatchError
from codec.grid import SensitivityGrid, unit_for
from codec.parameters import Role, parameters
from codec.quantize import Matrix, Quantizer, RowAbsmax, Strategy, step_exponent
from codec.quantized import Path, Quantized, StepGrid
from codec.rate import finest_within
from codec.tokenizer import Tokenizer
from codec.trellis import CODES

MAX_PARAMETERS = 1 << 28
"""Elements that a pack may claim to hold: 1 GiB of float32, the bound on memory for a hostile file."""

MAX_DIMENSIONS = 64
"""Of a tensor: torch's limit."""

MAX_HEADER = 1 << 24
MAX_TOKENIZER = 1 << 24

SMALL = 4096
"""In a plain state dict, tensors of fewer elements are kept as float16 vectors; the challenge's limit is 65,536 at
512 columns, which would leave the projections of a small model unquantized."""

FINEST_RATE = 12.0
"""Bits a weight beyond which no budget buys anything: rounding is then finer than bfloat16's."""

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
    calibration: Calibration | None = None,
    quantizer: Quantizer | None = None,
    strategy: Strategy = SensitivityGrid,
) -> bytes:
    """Compress a model into the bytes of a pack.

    Args:
        state_dict: the weights. With a config, exactly the tensors of `codec.parameters.parameters(config)`.
        config: the model's shape; without it the pack holds weights only.
        tokenizer: a Tokenizer or the content of a SentencePiece `.model`.
        budget: the largest allowed size of the pack in bytes. The finest unit of `strategy` that fits is taken, at most
            `codec.rate.SLACK` bytes below the budget.
        calibration: second moments by matrix (`trainer.calibrate`), which say where a budget's bits matter most.
        quantizer: to use as it is, in place of one that fits a budget; without either, 8 bits a weight.
        strategy: the quantizers by their unit that a budget chooses from (`codec.strategies` has more by name).

    Returns:
        The pack. Without a budget it is the same bytes on every machine; error feedback sums in floating point, so with
        one, another machine's may differ in a few integers.

    Raises:
        BudgetError: the budget cannot be met; `.smallest` says what was reached.
        MismatchError: state dict and config, config and tokenizer, or calibration do not belong together.
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
    names = [name for name, role in roles.items() if role != "vector"]
    count = sum(state_dict[name].numel() for name in names)

    def matrix(name: str) -> Matrix:
        weights = _matrix(name, state_dict[name])
        moments = moments_of(calibration, name, (weights.shape[0], weights.shape[1]))
        if roles[name] == "hash":  # a row that no text visits needs no bits
            weights = weights * (moments.row_weights > 0)[:, None]
        return Matrix(name, roles[name], weights, moments)

    def build(chosen: Quantizer) -> bytes:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            quantized = dict(zip(names, pool.map(lambda name: chosen(matrix(name)), names), strict=True))
        return _write(state_dict, roles, quantized, config, tokenizer)

    if quantizer or budget is None or not names:
        blob = build(quantizer or RowAbsmax(8))
        return blob if budget is None else finest_within(budget, lambda _: blob, 0, 1.0)
    first, finest = 1.0, 0.0
    if isinstance(one := strategy(1.0), SensitivityGrid):
        rates = [(one.rates(matrix(name)), prod(state_dict[name].shape[1:])) for name in names]
        first = unit_for(min(FINEST_RATE, 8 * budget / max(1, count)), rates, count)
        finest = unit_for(FINEST_RATE, rates, count)
    return finest_within(budget, lambda unit: build(strategy(unit)), count, first, finest)


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


def _matrix(name: str, tensor: torch.Tensor) -> NDArray[np.float32]:
    """A tensor as a float32 matrix [shape[0], everything else]. Raises FormatError for weights that are not finite."""
    weights = tensor.detach().cpu().float().reshape(tensor.shape[0], -1).numpy()
    if not np.isfinite(weights).all():
        row, column = np.argwhere(~np.isfinite(weights))[0]
        raise FormatError(
            f"tensor {name}: weight [{row}, {column}] is {weights[row, column]}, expected finite weights; "
            "repair the checkpoint"
        )
    return weights


def _write(
    state_dict: Mapping[str, torch.Tensor],
    roles: Mapping[str, Role],
    quantized: Mapping[str, Quantized],
    config: ModelConfig | None,
    tokenizer: Tokenizer | None,
) -> bytes:
    """The pack of quantized matrices and the other tensors of `state_dict`."""
    tensors, vectors = [], []
    words, vector_bytes = b"", b""
    for name, role in roles.items():
        tensor = state_dict[name].detach().cpu()
        if role == "vector":
            values = _vector(name, tensor)
            vectors.append({"name": name, "shape": list(tensor.shape), "dtype": str(values.dtype)})
            vector_bytes += values.tobytes()
            continue
        entry, steps = _write_steps(quantized[name])
        words += steps.astype("<u2").tobytes()
        tensors.append({"name": name, "shape": list(tensor.shape), "role": role, **entry})
    groups = [(_TABLES.index(roles[entry["name"]]), quantized[entry["name"]]) for entry in tensors]
    stream, coded = contexts.encode_matrices(groups, len(_TABLES))
    for entry, told in zip(tensors, coded, strict=True):
        entry["typical"], entry["bits"] = told.typical, round(told.bits)
    header = {"arithmetic": exact.ARITHMETIC, "tensors": tensors, "vectors": vectors}
    return write_container(
        {
            "header": shrink(json.dumps(header, separators=(",", ":")).encode()),
            "config": shrink(config.to_json().encode()) if config else b"",
            "tokenizer": shrink(tokenizer.model) if tokenizer else b"",
            "tensors": stream,
            "scales": symbols.encode_words(np.frombuffer(words, "<u2")),
            "vectors": shrink(vector_bytes),
        }
    )


def _write_steps(matrix: Quantized) -> tuple[dict[str, Any], NDArray[np.uint16]]:
    """The header entry of a matrix's steps, and their 16-bit words: [R] float16, or [R + C] exponents."""
    if matrix.grid is None:
        exponent = step_exponent(matrix.rows)
        halves = np.ldexp(matrix.rows, -exponent).astype(np.float16)
        return {"states": matrix.states, "exponent": exponent}, halves.view(np.uint16)
    grid = matrix.grid
    least = [int(exponents.min()) if exponents.size else 0 for exponents in (grid.rows, grid.columns)]
    exponents = np.concatenate((grid.rows - least[0], grid.columns - least[1])).astype(np.uint16)
    steps = {"states": matrix.states, "path": matrix.path, "unit": float(np.float32(grid.unit)), "least": least}
    return steps, exponents


def _read_steps(entry: dict[str, Any], words: NDArray[np.uint16]) -> Quantized:
    """The matrix of a header entry with its steps and empty symbols; the counterpart of `_write_steps`."""
    rows = entry["shape"][0]
    empty = np.zeros((rows, prod(entry["shape"][1:])), np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        if "unit" not in entry:
            halves = words.view(np.float16).astype(np.float32)
            return Quantized(empty, np.ldexp(halves, max(-200, min(200, entry["exponent"]))), None, entry["states"])
        exponents = words.astype(np.int32)
        grid = StepGrid(entry["unit"], exponents[:rows] + entry["least"][0], exponents[rows:] + entry["least"][1])
        return Quantized(empty, grid.row_steps(), grid.column_steps(), entry["states"], grid, entry["path"])


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
        if header["arithmetic"] != exact.ARITHMETIC:
            raise FormatError(
                f"pack: arithmetic version {header['arithmetic']!r}, this underpar computes {exact.ARITHMETIC}"
            )
        for entry in header["tensors"]:
            _check_entry(entry, entry["role"] in _TABLES and len(entry["shape"]) > 0 and _good_steps(entry))
        for entry in header["vectors"]:
            _check_entry(entry, entry["dtype"] in _VECTOR_TYPES)
        entries = header["tensors"] + header["vectors"]
        if len({entry["name"] for entry in entries}) != len(entries):
            raise FormatError("pack: header names a tensor twice")
        total = sum(prod(max(1, n) for n in entry["shape"]) for entry in entries)  # rows of nothing have steps, too
        if total > MAX_PARAMETERS:
            raise FormatError(f"pack: header claims {total} parameters, expected at most {MAX_PARAMETERS}")
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
        type(entry["unit"]) is float
        and len(entry["least"]) == 2
        and all(abs(n) < 1 << 15 for n in entry["least"])
        and entry["path"] in get_args(Path)
    )
    known = entry["states"] == 0 or entry["states"] in CODES
    return whole and grid and known and 0 <= entry["typical"] < 1 << 10 and entry["bits"] >= 0


def _read_matrices(manifest: dict[str, Any], sections: dict[str, bytes]) -> dict[str, Quantized]:
    entries = manifest["tensors"]
    counts = [e["shape"][0] + (prod(e["shape"][1:]) if "unit" in e else 0) for e in entries]
    words = symbols.decode_words(sections["scales"], sum(counts))
    matrices, at = {}, 0
    for entry, count in zip(entries, counts, strict=True):
        matrix = matrices[entry["name"]] = _read_steps(entry, words[at : at + count])
        at += count
        columns = np.ones(1) if matrix.columns is None else matrix.columns
        if not (np.isfinite(matrix.rows).all() and np.isfinite(columns).all()):
            raise FormatError(
                f"pack: tensor {entry['name']}: steps are not finite; the file was not written by underpar"
            )
    parts = [(_TABLES.index(e["role"]), matrices[e["name"]], e["typical"]) for e in entries]
    contexts.decode_matrices(sections["tensors"], parts, len(_TABLES))
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
