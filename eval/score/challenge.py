"""Read the challenge's checkpoints and artifacts: a float32 state dict, and the config that its tensors show.

`eval.score.challenge_file` unpacks a file into one of three known forms:

- a state dict, the `final_model.pt` of every script, its matrices by layer or in banks (`codec.model.banks`);
- the baseline's `final_model.int8.ptz`: a dict whose `__quant_format__` is `int8_clean_per_row_v1`. `quantized` holds
  int8 tensors, `scales` a float16 for each row (or one float16 for a tensor without rows), `dtypes` the dtype to which
  the product is rounded; `passthrough` holds the tensors that were not quantized, `passthrough_orig_dtypes` their
  original dtypes;
- the `final_model.int6.ptz` of later records: a dict of `w` and `m`. `w` holds `NAME.q`, int8, with `NAME.scale`, a
  float16 for each row, or the tensor itself in float16; `m` tells people how each tensor was quantized.

No file states the model's config. Most settings follow from names and shapes of the tensors. Settings that leave no
trace there are those of the family: the baseline (2026-03-18) or, where there are skip gates, the looped records
(2026-04-05, 2026-04-09).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codec.errors import FormatError
from codec.model.banks import from_challenge
from codec.model.config import ModelConfig
from eval.score.challenge_file import MAX_BYTES, read_content

FORMAT = "int8_clean_per_row_v1"

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}

LATER_DTYPES = {"tok_emb.weight": torch.bfloat16}
"""Tensors that the later records' models keep in another dtype than float32; dequantized weights are rounded to it."""

LOOPED: dict[str, Any] = {
    "window": 2048,
    "activation": "leaky_relu2",
    "rope_dims": 16,
    "skips": "gated",
    "ln_scale": True,
}
"""Settings that the looped records share and no tensor shows. All their layers have XSA, too."""

LOOPS: dict[tuple[int, int], dict[str, int]] = {
    (11, 7): {"loop_start": 4, "loop_end": 6, "loop_count": 3},
    (11, 8): {"loop_start": 3, "loop_end": 6, "loop_count": 3, "parallel_from": 7},
}
"""Which layers run several times or in parallel, by layers and skips: the records of 2026-04-05 and 2026-04-09."""

LANES = "parallel_post_lambdas"
"""The tensor of models whose last layers have two residual streams; such models are not supported."""

_AGAIN = "pass a checkpoint or an artifact of the challenge's baseline or of its looped records"


def load_peer(blob: bytes, settings: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], ModelConfig]:
    """Read weights, dequantized to float32 as the challenge does, and infer the config of their model.

    Args:
        blob: the bytes of a checkpoint or artifact.
        settings: entries of the config that the file does not show and that differ from its family's.

    Raises:
        FormatError: the file is of no known form, truncated or over 1 GiB, or its tensors make no model of a known
            family.
    """
    content = read_content(blob)
    if not isinstance(content, dict):
        raise FormatError(f"artifact: holds a {type(content).__name__}, expected a dict; {_AGAIN}")
    if set(content) == {"w", "m"}:
        state = _later(_tensors(content, "w"))
        if "skip_gates" not in state and not settings:
            raise FormatError(
                "artifact: without skip gates the model is of a record before the looped records, whose tensors do "
                "not show window, activation, rope_dims, xsa_layers and ln_scale; pass these settings to "
                "`underpar import` as KEY=VALUE"
            )
    elif all(isinstance(value, Tensor) for value in content.values()):
        state = {name: tensor.float() for name, tensor in _bounded(_tensors({"model": content}, "model")).items()}
    else:
        state = _baseline(content)
    state = from_challenge(state)
    return state, infer_config({name: tuple(tensor.shape) for name, tensor in state.items()}, settings)


def infer_config(shapes: dict[str, tuple[int, ...]], settings: Mapping[str, Any] | None = None) -> ModelConfig:
    """Infer the config of a model from the shapes of its tensors; other names and shapes are not checked.

    Args:
        shapes: the shape of each tensor by name.
        settings: entries of the config that override the inferred entries.

    Raises:
        FormatError: a tensor that shows an entry is missing, the entries make no model, or the loops are neither those
            of a known record nor in `settings`.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if len(found := shapes.get(name, ())) != dimensions or 0 in found:
            raise FormatError(
                f"artifact: tensor {name} is {found or 'missing'}, expected {dimensions} dimensions; {_AGAIN}"
            )
        return found

    if LANES in shapes:
        raise FormatError(f"artifact: tensor {LANES}: the model's last layers have two residual streams; {_AGAIN}")
    settings = settings or {}
    vocab_size, dim = shape("tok_emb.weight", 2)
    heads = shape("blocks.0.attn.q_gain", 1)[0]
    head_dim = max(1, dim // heads)
    layers = sum(name.endswith(".attn.q_gain") for name in shapes)
    values = {
        "vocab_size": vocab_size,
        "num_layers": layers,
        "model_dim": dim,
        "num_heads": heads,
        "num_kv_heads": shape("blocks.0.attn.c_k.weight", 2)[0] // head_dim,
        "mlp_mult": shape("blocks.0.mlp.fc.weight", 2)[0] // dim,
    }
    if "lm_head.weight" in shapes:
        values["tied_head"] = False
    if "bigram.embed.weight" in shapes:
        values["bigram_buckets"], values["bigram_dim"] = shape("bigram.embed.weight", 2)
    if "skip_gates" in shapes:
        values |= {**LOOPED, "xsa_layers": layers}
        skips = shape("skip_gates", 2)[0]
        if skips != layers // 2 and not settings.keys() & {"loop_start", "loop_end", "loop_count"}:
            if (layers, skips) not in LOOPS:
                raise FormatError(
                    f"artifact: {skips} skips of {layers} layers: some run several times, and no tensor shows which; "
                    "pass loop_start=, loop_end= and loop_count= to `underpar import`"
                )
            values |= LOOPS[layers, skips]
    return ModelConfig.from_dict({**values, **settings})


def _baseline(content: dict[str, Any]) -> dict[str, Tensor]:
    if content.get("__quant_format__") != FORMAT:
        found = str(content.get("__quant_format__"))[:80]
        raise FormatError(f"artifact: __quant_format__ is {found!r}, expected {FORMAT!r}; {_AGAIN}")
    quantized, scales = _tensors(content, "quantized"), _tensors(content, "scales")
    passthrough = _tensors(content, "passthrough")
    dtypes, originals = _dictionary(content, "dtypes"), _dictionary(content, "passthrough_orig_dtypes")
    _bounded({**quantized, **passthrough})
    state = {
        name: _dequantize(name, q, scales.get(name), _dtype(name, dtypes.get(name))) for name, q in quantized.items()
    }
    for name, tensor in passthrough.items():
        state[name] = tensor.to(_dtype(name, originals[name])).float() if name in originals else tensor.float()
    return state


def _later(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    _bounded(weights)
    state = {}
    for key, tensor in weights.items():
        name = key.removesuffix(".q").removesuffix(".scale")
        if key == name:
            state[name] = tensor.float()
        elif key.endswith(".q"):
            dtype = LATER_DTYPES.get(name, torch.float32)
            state[name] = _dequantize(name, tensor, weights.get(f"{name}.scale"), dtype)
    return state


def _bounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` if their float32 copies fit the bound on memory. Raises FormatError otherwise."""
    total = sum(tensor.numel() for tensor in tensors.values())
    if 4 * total > MAX_BYTES:
        raise FormatError(f"artifact: {total:,} parameters, expected at most {MAX_BYTES // 4:,}")
    return tensors


def _dictionary(content: dict[str, Any], field: str) -> dict[str, Any]:
    value = content.get(field, {})
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise FormatError(f"artifact: {field} is no dict of names; {_AGAIN}")
    return value


def _tensors(content: dict[str, Any], field: str) -> dict[str, Tensor]:
    found = _dictionary(content, field)
    for name, tensor in found.items():
        # A tensor that is not contiguous can claim more elements than the file has bytes.
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_contiguous():
            raise FormatError(f"artifact: {field} {name} is no contiguous tensor; {_AGAIN}")
    return found


def _dtype(name: str, dtype: Any) -> torch.dtype:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(
            f"artifact: tensor {name} was {str(dtype)[:80]!r}, expected one of {sorted(DTYPES)}; {_AGAIN}"
        )
    return DTYPES[dtype]


def _dequantize(name: str, symbols: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply symbols by scales in float32, round to the tensor's own dtype, and return float32."""
    rows = symbols.shape[:1] if symbols.ndim >= 2 else ()
    if symbols.dtype != torch.int8 or scale is None or not scale.is_floating_point() or scale.shape not in (rows, ()):
        found = "none" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
        raise FormatError(
            f"artifact: tensor {name} is {symbols.dtype} {tuple(symbols.shape)} with scales {found}, "
            f"expected int8 with a scale a row; {_AGAIN}"
        )
    steps = scale.float().reshape(-1, *[1] * (symbols.ndim - 1)) if scale.ndim else scale.float()
    return (symbols.float() * steps).to(dtype).float()
