"""Bound how large activations of the open families can become, so that every step stays far within float64's range."""

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.exact.bounds import LARGEST
from codec.model.transformer import TransformerConfig
from codec.quantization.quantized import Quantized


def check_range(
    config: TransformerConfig, matrices: Mapping[str, Quantized], vectors: Mapping[str, NDArray[np.floating]]
) -> None:
    """Check that no activation of a model can leave the range of exact arithmetic.

    Raises:
        FormatError: an activation could exceed LARGEST.
    """

    def peak(name: str) -> float:
        return float(np.abs(vectors[name].astype(np.float64)).max(initial=0)) if name in vectors else 0.0

    def entry(name: str) -> float:
        weights = matrices[name]
        columns = 1.0 if weights.columns is None else float(np.abs(weights.columns).max(initial=0))
        return weights.largest * float(np.abs(weights.rows).max(initial=0)) * columns

    def product(name: str, inputs: float) -> float:
        """Bound the entries of a product of rows with entries up to `inputs` with a matrix, its bias included."""
        return entry(name + ".weight") * matrices[name + ".weight"].symbols.shape[1] * inputs + peak(name + ".bias")

    def normed(name: str) -> float:
        return 2 * sqrt(config.model_dim) * peak(name + ".weight") + peak(name + ".bias")

    stream = entry("tok_emb.weight") + (entry("pos_emb.weight") if config.positions == "learned" else 0.0)
    largest = stream
    for layer in range(config.num_layers):
        block = f"blocks.{layer}."
        attended, seen = normed(block + "attn_norm"), normed(block + "mlp_norm")
        heads = [product(f"{block}attn.c_{name}", attended) for name in ("q", "k", "v")]
        heads += [sqrt(config.head_dim) * peak(f"{block}attn.{name}_norm.weight") for name in ("q", "k")]
        hidden = product(block + "mlp.fc", seen)
        stream += product(block + "attn.proj", heads[2])
        stream += product(block + "mlp.proj", hidden * hidden if config.activation == "swiglu" else hidden)
        largest = max(largest, stream, *heads, hidden * hidden)
    largest = max(largest, product("tok_emb" if config.tied_head else "lm_head", normed("norm")))
    if not largest < LARGEST:
        raise FormatError(
            f"pack: activations can reach {largest:.3g}, beyond the range of exact arithmetic; "
            "the weights are not a trained model's"
        )
