"""Peers: weight codecs of other projects, each but "ideal" ones really encoding and decoding.

The strongest peer is the challenge's: SDClip, then brotli, `lrzip -z` or zpaq. SDClip is GPTQ with one float16 step a
row, `sigmas` standard deviations of the row over the largest integer (6 bits, 12.85 sigma for matrices; 8 bits, 20
sigma for the embedding). Its steps can be re-tuned: all of them by `scale`, the embedding's by `embedding` on top.
"""

import importlib
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.quantization.calibration import Moments
from codec.quantization.feedback import Codebook, damped, quantize_columns, upper_factor
from eval.ablate.lossless import STAGES, Stage, Table, Tables, identical
from eval.ablate.low_rank import apply_repairs, is_repair, repairs
from eval.ablate.peer import Coded, Peer, State
from eval.ablate.rates import entquant_peer, watersic_peer
from eval.ablate.subject import Subject

Rounding = Callable[[NDArray[np.float32], str, Moments, float], tuple[NDArray[np.int8], NDArray[np.float16]]]
"""Weights [R, C], their kind (a role, or mlp) and moments, and a factor on the steps -> (symbols [R, C], steps [R])."""


def absmax_rows(bits: int) -> Rounding:
    """Return a rounding to nearest, the step of a row its largest magnitude over 2^(bits-1) - 1."""

    def quantize(
        weights: NDArray[np.float32], kind: str, moments: Moments, factor: float
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        limit = 2 ** (bits - 1) - 1
        finest = max(factor, limit / 127)  # finer steps would clip to int8, the type of the lossless stages
        steps = _half(finest * np.abs(weights).max(1, initial=0) / limit)
        return np.rint(weights / steps[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8), steps

    return quantize


Sigmas = Mapping[str, tuple[int, float]]
"""Bits, and the largest integer in standard deviations of a row, by kind."""

SIGMAS: Sigmas = {"matrix": (6, 12.85), "mlp": (6, 12.85), "hash": (6, 12.85), "embedding": (8, 20.0)}
"""The record of 2026-04-05."""

LATER_SIGMAS: Sigmas = {"matrix": (6, 13.0), "mlp": (6, 11.5), "hash": (6, 13.0), "embedding": (7, 14.0)}
"""The challenge's last codec, that of its pull request 1855."""


def gptq(sigmas: Sigmas) -> Rounding:
    """Return GPTQ with the challenge's steps; columns of large input moments come first, as in the challenge."""

    def quantize(
        weights: NDArray[np.float32], kind: str, moments: Moments, factor: float
    ) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        bits, clip = sigmas[kind]
        limit = 2 ** (bits - 1) - 1
        steps = _half(factor * clip / limit * weights.std(1, ddof=1 if weights.shape[1] > 1 else 0))
        inputs = moments.inputs
        order = np.argsort(-inputs if inputs.ndim == 1 else -np.diagonal(inputs), kind="stable")
        ranked = inputs[order] if inputs.ndim == 1 else inputs[np.ix_(order, order)]
        ordered = quantize_columns(
            weights[:, order].astype(np.float64),
            upper_factor(damped(ranked)),
            Codebook(steps.astype(np.float64), np.ones(len(order)), limit=limit),
        )
        symbols = np.empty(weights.shape, np.int8)
        symbols[:, order] = ordered
        return symbols, steps

    return quantize


sdclip, later = gptq(SIGMAS), gptq(LATER_SIGMAS)


def table_peer(rounding: Rounding, stage: Stage, repaired: int = 0) -> Peer:
    """Return a peer that rounds matrices by `rounding`, other tensors to float16, and applies a lossless stage.

    The `repaired` matrices of the largest errors get a correction of low rank (`eval.ablate.low_rank`).
    """

    def run(subject: Subject, scale: float, embedding: float) -> Coded:
        began = time.perf_counter()
        tables = quantize_tables(subject, rounding, scale, embedding)
        if repaired:
            errors = {name: weights - _weights(tables.tables[name]) for name, weights in subject.matrices.items()}
            tables = Tables(tables.tables, {**tables.others, **repairs(errors, repaired)})
        blob = stage.encode(tables)
        encoded = time.perf_counter()
        back = stage.decode(blob)
        if not identical(back, tables):
            raise CodecError("a peer's lossless stage does not restore its input")
        return Coded(len(blob), dequantize_tables(back), encoded - began, time.perf_counter() - encoded)

    return Peer(run, stage.missing)


def quantize_tables(subject: Subject, rounding: Rounding, scale: float, embedding: float) -> Tables:
    """Quantize a subject's matrices to tables; other tensors become float16 or stay as they are."""
    tables = {}
    for name, weights in subject.matrices.items():
        factor = scale * (embedding if subject.roles[name] == "embedding" else 1.0)
        kind = "mlp" if subject.roles[name] == "matrix" and "mlp" in name else subject.roles[name]
        symbols, steps = rounding(weights, kind, subject.moments(name), factor)
        tables[name] = Table(tuple(subject.state[name].shape), symbols, steps)
    others = {name: subject.state[name] for name, role in subject.roles.items() if role == "vector"}
    return Tables(tables, {name: _passed(tensor) for name, tensor in others.items()})


def dequantize_tables(tables: Tables) -> State:
    """Return the weights of tables, float32."""
    state = {}
    for name, table in tables.tables.items():
        weights = apply_repairs(name, _weights(table), tables.others)
        state[name] = torch.from_numpy(weights).reshape(table.shape)
    for name, values in tables.others.items():
        if is_repair(name):
            continue
        tensor = torch.from_numpy(values.copy())
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def _weights(table: Table) -> NDArray[np.float32]:
    return table.symbols * table.steps.astype(np.float32)[:, None]


def nncodec_peer(dependent: bool) -> Peer:
    """Return Fraunhofer's NNC: each matrix in its own stream, by NNC's own quantizer, uniform or dependent.

    All tensors have one step, which the quantization parameter qp sets on a grid of quarter octaves.
    """

    def run(subject: Subject, scale: float, embedding: float) -> Coded:
        nnc = importlib.import_module("nncodec.tensor")
        size = sum(weights.size for weights in subject.matrices.values())
        octaves = sum(
            w.size * math.log2(max(float(np.square(w).mean()) ** 0.5, 2.0**-60)) for w in subject.matrices.values()
        )
        typical = 2 ** (octaves / size)
        began = time.perf_counter()
        streams: dict[str, bytearray] = {}
        others = {n: _passed(subject.state[n]) for n, role in subject.roles.items() if role == "vector"}
        rest = STAGES["brotli-11"].encode(Tables({}, others))
        with redirect_stdout(io.StringIO()):
            for name, weights in subject.matrices.items():
                factor = scale * (embedding if subject.roles[name] == "embedding" else 1.0)
                step = max(NNC_STEP * factor * typical, 2.0**-60)
                qp = round(4 * math.log2(step)) - (
                    4 if dependent else 0
                )  # each of the two quantizers of NNC has steps twice as wide
                streams[name] = bytearray(nnc.encode(weights, {"qp": qp, "use_dq": dependent}))
            encoded = time.perf_counter()
            state = dequantize_tables(STAGES["brotli-11"].decode(rest))
            for name, stream in streams.items():
                back = torch.from_numpy(np.asarray(nnc.decode(stream), np.float32).copy())
                state[name] = back.reshape(subject.state[name].shape)
        size = len(rest) + sum(map(len, streams.values()))
        return Coded(size, state, encoded - began, time.perf_counter() - encoded)

    return Peer(run, lambda: _absent("nncodec.tensor"))


NNC_STEP = 0.4145
"""The step at scale 1, over the geometric mean of the weights' magnitudes: 12.85 sigma / 31. NNC's is 2^(qp / 4)."""


def zipnn_peer() -> Peer:
    """Return ZipNN: lossless, on the weights as stored."""

    def run(subject: Subject, scale: float, embedding: float) -> Coded:
        zipnn = importlib.import_module("zipnn").ZipNN(input_format="torch")
        began = time.perf_counter()
        blobs, plain = {}, {}
        for name, tensor in subject.state.items():
            if tensor.is_floating_point() and tensor.numel():
                blobs[name] = zipnn.compress(tensor.clone())  # zipnn works in place
            else:
                plain[name] = tensor
        encoded = time.perf_counter()
        state = {name: zipnn.decompress(blob) for name, blob in blobs.items()}
        if any(not torch.equal(tensor, subject.state[name]) for name, tensor in state.items()):
            raise CodecError("zipnn does not restore its input")
        size = sum(map(len, blobs.values())) + sum(t.numel() * t.element_size() for t in plain.values())
        back = {name: tensor.float() for name, tensor in state.items()} | plain
        return Coded(size, back, encoded - began, time.perf_counter() - encoded)

    return Peer(run, lambda: _absent("zipnn"), lossless=True)


PEERS: dict[str, Peer] = {
    "int8+zlib": table_peer(absmax_rows(8), STAGES["zlib-9"]),
    "int6+zstd": table_peer(absmax_rows(6), STAGES["zstd-22"]),
    "sdclip+brotli": table_peer(sdclip, STAGES["brotli-11"]),
    "sdclip+lrzip": table_peer(sdclip, STAGES["lrzip -z"]),
    "sdclip+zpaq": table_peer(sdclip, STAGES["zpaq -m5"]),
    "lqer+brotli": table_peer(later, STAGES["brotli-11"], repaired=3),
    "lqer+lrzip": table_peer(later, STAGES["lrzip -z"], repaired=3),
    "lqer+zpaq": table_peer(later, STAGES["zpaq -m5"], repaired=3),
    "watersic": watersic_peer(ideal=False),
    "watersic-ideal": watersic_peer(ideal=True),
    "entquant-ideal": entquant_peer(),
    "nncodec": nncodec_peer(dependent=False),
    "nncodec-dq": nncodec_peer(dependent=True),
    "zipnn": zipnn_peer(),
}
"""Peers by name: the first is the codec of the challenge's baseline, those with SDClip the codecs of its records, those
with LQER its last codec. "ideal": the bytes are an entropy, and no file is written."""


def _half(steps: NDArray[np.floating]) -> NDArray[np.float16]:
    """Return steps as float16, at least the least positive float16, so that a row of zeros has a step, too."""
    return np.clip(steps, np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max).astype(np.float16)


def _passed(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor that is no matrix as float16, or float32 where float16 would overflow.

    Integers stay as they are.
    """
    values = tensor.detach().cpu()
    if not values.is_floating_point():
        return values.numpy()
    small = values.numel() == 0 or values.abs().max() < np.finfo(np.float16).max
    return (values.half() if small else values.float()).numpy()


def _absent(module: str) -> str:
    """Return why a module cannot be imported, or ""."""
    try:
        with redirect_stdout(io.StringIO()):
            importlib.import_module(module)
    except Exception as error:
        return f"{module.partition('.')[0]} cannot be imported ({error})"
    return ""
