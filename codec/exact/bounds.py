"""Bound the activations of a pack's model over all texts: activations must stay within float64's range."""

from collections.abc import Mapping, Sequence
from math import ldexp, sqrt

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.model.config import ModelConfig
from codec.quantization.quantized import Quantized

LARGEST = ldexp(1.0, 480)
"""The largest activation allowed: sums of squares of this size over a row of any length are far from overflow."""


def check_range(
    config: ModelConfig,
    matrices: Mapping[str, Quantized],
    vectors: Mapping[str, NDArray[np.floating]],
    norm_scales: Sequence[float],
) -> None:
    """Follow the residual stream through the schedule, with bounds in place of values.

    Args:
        config: the model's shape.
        matrices: every matrix, by name.
        vectors: every vector, by name.
        norm_scales: the scale of each layer's norm.

    Raises:
        FormatError: an activation could exceed LARGEST. No trained model comes near LARGEST; weights that were made to
            break the decoder do.
    """

    def peak(name: str) -> float:
        return float(np.abs(vectors[name].astype(np.float64)).max(initial=0))

    def entry(name: str) -> float:
        weights = matrices[name]
        columns = 1.0 if weights.columns is None else float(np.abs(weights.columns).max(initial=0))
        return weights.largest * float(np.abs(weights.rows).max(initial=0)) * columns

    def product(name: str) -> float:
        """Return the largest factor by which a product with the matrix can multiply a magnitude."""
        return entry(name) * matrices[name].symbols.shape[1]

    def mlp(name: str) -> float:
        """Return `product` for a matrix of an MLP, which may be a random map."""
        if not config.random_rank:
            return product(name + ".weight")
        inputs = matrices[name + ".inner.weight"].symbols.shape[1]
        return peak(name + ".scale") * inputs + product(name + ".inner.weight") * product(name + ".outer.weight")

    unit = 2 * sqrt(config.model_dim)  # no entry of a normalised row is larger
    embedding = entry("tok_emb.weight") * (product("embed_proj.weight") if config.embedding_dim else 1.0)
    if config.smear_gate:
        embedding *= 1 + peak("smear.scale")
    if config.bigram_buckets:
        embedding += peak("bigram.scale") * product("bigram.proj.weight") * entry("bigram.embed.weight")
    stream, largest = unit, max(unit, embedding)
    skips: list[float] = []
    for n, layer in enumerate(config.schedule):
        block = f"blocks.{layer}."
        if n >= config.encoder_length and skips:
            stream += peak("skip_weights") * skips.pop()
        value = unit * norm_scales[layer] * product(block + "attn.c_v.weight")
        if config.adds_values(layer):
            added = product("values.proj.weight") * entry("values.embed.weight")
            value += peak(block + "attn.value_scale") * added
        mixed = 2 * sqrt(config.head_dim) * value * product(block + "attn.proj.weight")
        hidden = unit * norm_scales[layer] * mlp(block + "mlp.fc")
        stream = (stream + unit) * peak(block + "resid_mix") + mixed * peak(block + "attn_scale")
        stream += hidden * hidden * mlp(block + "mlp.proj") * peak(block + "mlp_scale")
        if n < config.encoder_length:
            skips.append(stream)
        largest = max(largest, stream)
        if not largest < LARGEST:
            raise FormatError(
                f"pack: activations can reach {largest:.3g} in layer {layer}, beyond the range of exact arithmetic; "
                "the weights are not a trained model's"
            )
