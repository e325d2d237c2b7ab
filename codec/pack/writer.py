"""Writing packs: quantize a state dict, code its integers, meet a budget."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from codec.entropy import adaptive_table
from codec.errors import FormatError, MismatchError
from codec.exact.recall import Recall
from codec.model.byte_pairs import AnyTokenizer, open_tokenizer
from codec.model.config import AnyConfig
from codec.model.parameters import Role, parameters
from codec.numerics.widths import ARITHMETIC
from codec.pack import context_coder
from codec.pack.container import read_container, write_container
from codec.pack.reader import MAX_HEADER, OFF, TABLES, VECTOR_TYPES, check_shapes, check_vocabulary, parse_header
from codec.quantization.calibration import Calibration, moments_of
from codec.quantization.quantized import Quantized
from codec.quantization.quantizers import Matrix, Quantizer, RowAbsmax, Strategy, step_exponent
from codec.quantization.rate import finest_within
from codec.quantization.sensitivity import SensitivityGrid, unit_for
from codec.zstd import shrink, unshrink

SMALL = 4096
"""In a plain state dict, tensors of fewer elements are kept as float16 vectors; the challenge's limit is 65,536 at
512 columns, which would leave the projections of a small model unquantized."""

HALF_LIMIT = 65_504
"""Float16's largest number: vectors with entries from here on are kept as float32."""

FINEST_RATE = 12.0
"""Bits a weight beyond which no budget buys anything: rounding is then finer than bfloat16's."""


def compress(
    state_dict: Mapping[str, torch.Tensor],
    config: AnyConfig | None = None,
    tokenizer: AnyTokenizer | bytes | None = None,
    budget: int | None = None,
    calibration: Calibration | None = None,
    quantizer: Quantizer | None = None,
    strategy: Strategy = SensitivityGrid,
) -> bytes:
    """Compress a model into the bytes of a pack.

    Args:
        state_dict: the weights. With a config, exactly the tensors of `codec.model.parameters.parameters(config)`.
        config: the model's shape; without it the pack holds weights only.
        tokenizer: a tokenizer or its serialized form: a SentencePiece `.model`, or `BytePairs.model`.
        budget: the largest allowed size of the pack in bytes. The finest unit of `strategy` that fits is taken, at most
            `codec.quantization.rate.SLACK` bytes below the budget.
        calibration: second moments by matrix (`trainer.fit.calibrate`), which say where a budget's bits matter most.
        quantizer: to use as it is, in place of one that fits a budget; without either, 8 bits a weight.
        strategy: the quantizers by their unit that a budget chooses from (`codec.quantization.strategies` has more by
            name).

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
        tokenizer = open_tokenizer(tokenizer)
    roles = _roles(state_dict, config)
    if config and tokenizer:
        check_vocabulary(config, tokenizer)
    names = [name for name, role in roles.items() if role != "vector"]
    count = sum(state_dict[name].numel() for name in names)

    def matrix(name: str) -> Matrix:
        weights = _matrix(name, state_dict[name])
        moments = moments_of(calibration, name, (weights.shape[0], weights.shape[1]))
        if roles[name] == "hash":  # a row that no text visits needs no bits
            weights = weights * (moments.row_weights > 0)[:, None]
        return Matrix(name, roles[name], weights, moments)

    def build(chosen: Quantizer) -> bytes:
        # Threads of BLAS that wait for each other beside ours made this seven times slower.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
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


def with_vectors(blob: bytes, vectors: Mapping[str, torch.Tensor]) -> bytes:
    """The pack `blob` with other vectors: everything that is not quantized. Its integers and steps stay as they are.

    Raises:
        MismatchError: not exactly the pack's vectors, or of other shapes.
        FormatError: not a pack, or values that are not finite.
    """
    sections = read_container(blob)
    header = parse_header(unshrink(sections["header"], MAX_HEADER, "pack: header"))
    expected = {entry["name"]: tuple(entry["shape"]) for entry in header["vectors"]}
    if expected != {name: tuple(vector.shape) for name, vector in vectors.items()}:
        raise MismatchError(f"vectors: found {sorted(vectors)}, the pack has {expected}; pass those of its model")
    content = b""
    for entry in header["vectors"]:
        values = _vector(entry["name"], vectors[entry["name"]].detach().cpu())
        entry["dtype"] = str(values.dtype)
        content += values.tobytes()
    sections["header"], sections["vectors"] = _shrunk(header), shrink(content)
    return write_container(sections)


def with_recall(blob: bytes, recall: Recall) -> bytes:
    """The pack `blob` with these tables of recall. Raises FormatError for what is no pack."""
    sections = read_container(blob)
    header = parse_header(unshrink(sections["header"], MAX_HEADER, "pack: header"))
    header["recall"] = recall.to_json()
    sections["header"] = _shrunk(header)
    return write_container(sections)


def _roles(state_dict: Mapping[str, torch.Tensor], config: AnyConfig | None) -> dict[str, Role]:
    """The role of each tensor, in the order of the pack."""
    if config:
        check_shapes(config, {name: tuple(tensor.shape) for name, tensor in state_dict.items()})
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
    config: AnyConfig | None,
    tokenizer: AnyTokenizer | None,
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
    groups = [(TABLES.index(roles[entry["name"]]), quantized[entry["name"]]) for entry in tensors]
    stream, coded = context_coder.encode_matrices(groups, len(TABLES))
    for entry, told in zip(tensors, coded, strict=True):
        entry["typical"], entry["bits"] = told.typical, round(told.bits)
    header = {"arithmetic": ARITHMETIC, "tensors": tensors, "vectors": vectors}
    return write_container(
        {
            "header": _shrunk(header),
            "config": shrink(config.to_json().encode()) if config else b"",
            "tokenizer": shrink(tokenizer.model) if tokenizer else b"",
            "tensors": stream,
            "scales": adaptive_table.encode_words(np.frombuffer(words, "<u2")),
            "vectors": shrink(vector_bytes),
        }
    )


def _shrunk(header: dict[str, Any]) -> bytes:
    return shrink(json.dumps(header, separators=(",", ":")).encode())


def _write_steps(matrix: Quantized) -> tuple[dict[str, Any], NDArray[np.uint16]]:
    """The header entry of a matrix's steps, and their 16-bit words: [R] float16, or [R + C] exponents."""
    if matrix.grid is None:
        exponent = step_exponent(matrix.rows)
        halves = np.ldexp(matrix.rows, -exponent).astype(np.float16)
        return {"states": matrix.states, "exponent": exponent}, halves.view(np.uint16)
    grid = matrix.grid
    least = [int(exponents.min()) if exponents.size else 0 for exponents in (grid.rows, grid.columns)]
    exponents = np.concatenate((grid.rows - least[0], grid.columns - least[1])).astype(np.uint16)
    if matrix.on:
        exponents += OFF * ~np.concatenate(matrix.on)
    steps = {"states": matrix.states, "unit": float(np.float32(grid.unit)), "least": least}
    return steps, exponents


def _vector(name: str, tensor: torch.Tensor) -> NDArray[Any]:
    """A vector as it is kept: float16, float32 where float16 would overflow, integers unchanged; little-endian."""
    if tensor.is_floating_point():
        values = tensor.double().numpy()
        if not np.isfinite(values).all():
            raise FormatError(f"tensor {name}: not all values are finite; repair the checkpoint")
        if np.abs(values).max(initial=0) < HALF_LIMIT:
            return values.astype("<f2")
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise FormatError(f"tensor {name}: {np.abs(values).max():.3g} is too large for float32")
        return values.astype("<f4")
    values = tensor.numpy()
    if str(values.dtype) not in VECTOR_TYPES:
        raise FormatError(f"tensor {name}: dtype {values.dtype}, expected floating point or one of {VECTOR_TYPES[2:]}")
    return values
