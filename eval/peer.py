"""The challenge baseline's artifact, read into our terms: zlib of a `torch.save` dict of int8 rows and fp16 scales.

The dict's `__quant_format__` is `int8_clean_per_row_v1`. `quantized` holds int8 tensors, `scales` a float16 for each
row (a tensor without rows has one), `dtypes` what to round the product to; `passthrough` holds the tensors that were
not quantized, `passthrough_orig_dtypes` what they were. The shape of the model is not written down: it follows from the
tensors, and what leaves no trace in them (window, rope_base, logit_softcap) is the challenge's default.
"""

import io
import zipfile
import zlib
from typing import Any

import torch
from torch import Tensor

from codec.config import ModelConfig
from codec.errors import FormatError

FORMAT = "int8_clean_per_row_v1"

MAX_BYTES = 1 << 30
"""Of the unpacked file and of the float32 weights, each: the bound on memory for a hostile file."""

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}

_AGAIN = "pass a final_model.int8.ptz as the challenge's baseline script writes it"


def load_peer(blob: bytes) -> tuple[dict[str, Tensor], ModelConfig]:
    """The weights, float32, dequantized as the challenge does, and the shape of the model they are of.

    Raises:
        FormatError: not such an artifact, truncated, over 1 GiB, or its tensors make no model of the baseline's kind.
    """
    content = _unpickle(_inflate(blob))
    if not isinstance(content, dict) or content.get("__quant_format__") != FORMAT:
        found = content.get("__quant_format__") if isinstance(content, dict) else type(content).__name__
        raise FormatError(f"artifact: __quant_format__ is {str(found)[:80]!r}, expected {FORMAT!r}; {_AGAIN}")
    quantized, scales = _tensors(content, "quantized"), _tensors(content, "scales")
    passthrough = _tensors(content, "passthrough")
    dtypes, originals = _dictionary(content, "dtypes"), _dictionary(content, "passthrough_orig_dtypes")
    total = sum(tensor.numel() for tensor in (*quantized.values(), *passthrough.values()))
    if 4 * total > MAX_BYTES:
        raise FormatError(f"artifact: {total:,} parameters, expected at most {MAX_BYTES // 4:,}")
    state = {name: _dequantize(name, q, scales.get(name), dtypes.get(name)) for name, q in quantized.items()}
    for name, tensor in passthrough.items():
        state[name] = tensor.to(_dtype(name, originals[name])).float() if name in originals else tensor.float()
    return state, infer_config({name: tuple(tensor.shape) for name, tensor in state.items()})


def infer_config(shapes: dict[str, tuple[int, ...]]) -> ModelConfig:
    """The config of a baseline whose tensors have these shapes; names and shapes are not all checked against it.

    Raises:
        FormatError: a tensor that says something about the shape is missing, or the numbers make no model.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if len(found := shapes.get(name, ())) != dimensions or 0 in found:
            raise FormatError(
                f"artifact: tensor {name} is {found or 'missing'}, expected {dimensions} dimensions; {_AGAIN}"
            )
        return found

    vocab_size, dim = shape("tok_emb.weight", 2)
    heads = shape("blocks.0.attn.q_gain", 1)[0]
    head_dim = max(1, dim // heads)
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=sum(name.endswith(".attn.q_gain") for name in shapes),
        model_dim=dim,
        num_heads=heads,
        num_kv_heads=shape("blocks.0.attn.c_k.weight", 2)[0] // head_dim,
        mlp_mult=shape("blocks.0.mlp.fc.weight", 2)[0] // dim,
    )


def _inflate(blob: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(blob, MAX_BYTES + 1)
    except zlib.error as error:
        raise FormatError(f"artifact: not zlib data ({error}); {_AGAIN}") from error
    if len(raw) > MAX_BYTES:
        raise FormatError(f"artifact: unpacks to over {MAX_BYTES:,} bytes; {_AGAIN}")
    if not inflater.eof:
        raise FormatError(
            f"artifact: truncated: its zlib data does not end within its {len(blob):,} bytes; fetch it again"
        )
    return raw


def _unpickle(raw: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            records = archive.infolist()
    except zipfile.BadZipFile as error:
        raise FormatError(f"artifact: holds no torch.save file ({error}); {_AGAIN}") from error
    # torch.save stores its records as they are; a compressed one would unpack past the bound on memory.
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise FormatError(f"artifact: holds compressed records, which torch.save does not write; {_AGAIN}")
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make the loader raise anything
        reason = str(error).partition("\n")[0][:200]
        raise FormatError(f"artifact: not a torch.save file of plain tensors ({reason}); {_AGAIN}") from error


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


def _dequantize(name: str, symbols: Tensor, scale: Tensor | None, dtype: Any) -> Tensor:
    """symbols x scale in float32, rounded to the tensor's own dtype, in float32 again."""
    rows = symbols.shape[:1] if symbols.ndim >= 2 else ()
    if symbols.dtype != torch.int8 or scale is None or not scale.is_floating_point() or scale.shape not in (rows, ()):
        found = "none" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
        raise FormatError(
            f"artifact: tensor {name} is {symbols.dtype} {tuple(symbols.shape)} with scales {found}, "
            f"expected int8 with a scale a row; {_AGAIN}"
        )
    steps = scale.float().reshape(-1, *[1] * (symbols.ndim - 1)) if scale.ndim else scale.float()
    return (symbols.float() * steps).to(_dtype(name, dtype)).float()
