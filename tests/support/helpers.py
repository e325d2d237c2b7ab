"""What several test modules share: the data folder beside the checkout, and tiny models of every option, packed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import codec
from codec.exact.backend import Backend
from codec.exact.weights import Weights
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from codec.model.tokenizer import Tokenizer
from codec.pack.reader import Pack
from codec.quantization.quantized import Quantized, power
from trainer.data.sample import sp1024, train_documents
from trainer.data.tokenizer import train_tokenizer
from trainer.model.gpt import GPT

ROOT = Path(__file__).resolve().parents[2]

EVERY_OPTION = ModelConfig(
    window=32,
    num_layers=3,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    activation="leaky_relu2",
    rope_dims=4,
    yarn=2.0,
    skips="gated",
    xsa_layers=2,
    ln_scale=True,
    parallel_from=2,
    loop_start=1,
    loop_end=2,
    loop_count=2,
    bigram_buckets=64,
    bigram_dim=16,
    attention_gate=True,
    smear_gate=True,
)
"""Four block executions of three layers, with everything a config can switch on."""

RARE_OPTIONS = replace(EVERY_OPTION, embedding_dim=24, random_rank=4, value_dims=8, activation="swiglu")
"""Those that compiled backends leave to the reference, too."""

PLAIN = ModelConfig(window=32, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2)
"""The challenge's baseline in small."""


def shared(*parts: str) -> Path:
    """A path in the data folder beside the checkout; the test is skipped where that folder is absent."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared data folder, which is not beside this checkout")
    return path


def weights_with_columns(config: ModelConfig, seed: int = 0) -> Weights:
    """Random integers with steps for every row and column, some integers above 8 bits."""
    generator, matrices, vectors = np.random.default_rng(seed), {}, {}
    for name, parameter in parameters(config).items():
        shape = parameter.shape
        if parameter.role == "vector":
            vectors[name] = (1 + 0.1 * generator.standard_normal(shape)).astype(np.float32)
            continue
        symbols = np.rint(generator.standard_normal(shape) * 8).astype(np.int32)
        symbols.flat[::5003] *= 12
        deviation = 1.0 if parameter.role == "embedding" else shape[1] ** -0.5
        rows = deviation / 8 * power(generator.integers(-2, 3, shape[0]).astype(np.int32))
        columns = power(generator.integers(-4, 5, shape[1]).astype(np.int32))
        matrices[name] = Quantized(symbols, rows.astype(np.float32), columns)
    return Weights(config, matrices, vectors)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of which every part of the model moves the logits; distributions have about 6 bits."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in GPT(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2 and name.endswith("weight"):
            weights[name] = noise * (0.5 if "emb" in name and "proj" not in name else tensor.shape[1] ** -0.5)
        else:
            weights[name] = tensor + 0.3 * noise
    return weights


@lru_cache
def lossless_tokenizer() -> Tokenizer:
    """512 tokens that keep all text, runs of one letter among them."""
    return train_tokenizer([*list(train_documents())[-60:], b"a" * 4096], 512)


@lru_cache
def folding_tokenizer() -> Tokenizer:
    """512 tokens of folded text."""
    return train_tokenizer(list(train_documents())[-60:], 512, folds=True)


@lru_cache
def folding_pack() -> Pack:
    """A pack of random weights whose tokenizer folds."""
    return codec.open(codec.compress(random_weights(PLAIN), PLAIN, folding_tokenizer()))


@lru_cache
def tiny_blob(config: ModelConfig = EVERY_OPTION, seed: int = 0, lossless: bool = False) -> bytes:
    """A pack of random weights, with the challenge's tokenizer or one that loses nothing."""
    return codec.compress(random_weights(config, seed), config, lossless_tokenizer() if lossless else sp1024())


def whole_sums(
    backend: Backend, inputs: Sequence[NDArray[np.int64]], order: NDArray[np.int64], past: Any
) -> NDArray[np.int64]:
    """All entries of `Backend.ordered_sums`, int64 [N, V + 1]."""
    shape = sum(map(len, inputs)), len(order) + 1
    return backend.ordered_sums(inputs, order, past, np.indices(shape).reshape(2, -1))().reshape(shape)


@lru_cache
def tiny_pack(config: ModelConfig = EVERY_OPTION, seed: int = 0, lossless: bool = False) -> Pack:
    """`tiny_blob`, opened."""
    return codec.open(tiny_blob(config, seed, lossless))


def parities(integers: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Each integer's lowest bit as the trellis says it, along a path that begins in state 0."""
    found, state = np.empty(len(integers), np.uint8), 0
    for n, q in enumerate(integers):
        found[n] = state & 1
        state = following[state, (q >> 1) & 1]
    return found
