"""Make the golden packs: every family of models, tokenizer, option, dtype, and way to code a tensor.

None has over some ten thousand weights; `python -m tests.golden.make` writes them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO

import numpy as np
import sentencepiece
import torch

import codec
from codec.model.byte_pairs import BytePairs, serialize
from codec.model.config import ModelConfig
from codec.model.tokenizer import Tokenizer
from codec.model.transformer import TransformerConfig
from codec.pack.change import with_recall, with_tunings
from codec.pack.parts.dtypes import BYTES, FLOATS
from codec.pack.parts.tensors import TYPES, from_bytes
from codec.pack.writer import Extras, PackJob
from codec.quantization.quantized import Quantized, Tuning
from codec.quantization.quantizers import Matrix, RowAbsmax, RowOctaves
from codec.quantization.sensitivity import SensitivityGrid
from codec.quantization.trellis import CODES
from tests.codec.exact.test_recall import TABLES
from tests.support.families import FAMILIES, LLAMA, byte_pairs, family_weights
from tests.support.fuzzing import blob
from tests.support.helpers import PLAIN, RARE_OPTIONS, folding_tokenizer, random_weights, tiny_blob
from trainer.data.sample import train_documents

PACKS: dict[str, Callable[[], bytes]] = {}
"""Recipes of the golden packs by name."""

RARE = replace(
    RARE_OPTIONS, vocab_size=512, window=24, model_dim=16, num_heads=2, num_kv_heads=1, embedding_dim=12,
    bigram_buckets=16, bigram_dim=6, value_dims=6, value_layers=1,
)  # fmt: skip
UNTIED = replace(
    PLAIN, vocab_size=330, model_dim=12, num_heads=2, num_kv_heads=1, tied_head=False, mlp_mult=3, rope_base=500.0,
    logit_softcap=15.0,
)  # fmt: skip
SMALL = replace(LLAMA, num_layers=1, model_dim=20, hidden_dim=26, num_heads=4, num_kv_heads=2)


def golden(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """List a function as what makes the pack of its name."""
    PACKS[make.__name__] = make
    return make


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, float32 of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def normalising_tokenizer() -> Tokenizer:
    """330 tokens that lose line ends and runs of spaces."""
    model = BytesIO()
    texts = (text.decode() for text, _ in zip(train_documents(), range(20), strict=False))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, model_type="bpe", vocab_size=330, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return Tokenizer(model.getvalue())


def split_by(split: str, whole: bool = False, begin: int = 0, end: int = 0) -> BytePairs:
    """The byte-level BPE of `byte_pairs` with another split."""
    base = byte_pairs(begin, end)
    words = {word: n for n, word in enumerate(base.words) if word is not None}
    return BytePairs(serialize(words, base.merges, base.controls, split, whole, begin, end))


def own(config: ModelConfig, tokenizer: Tokenizer, budget: int | None = None) -> bytes:
    return codec.compress(random_weights(config), config, tokenizer, budget)


def family(config: TransformerConfig, tokenizer: BytePairs | None = None) -> bytes:
    tokenizer = tokenizer or byte_pairs(config.begin, config.end)
    return codec.compress(family_weights(config), config, tokenizer)


@golden
def plain() -> bytes:
    """The challenge's baseline in small; a tokenizer that loses nothing."""
    return blob()


@golden
def every() -> bytes:
    """Every option that compiled backends know; tables of recall."""
    return with_recall(tiny_blob(lossless=True), TABLES)


@golden
def rare() -> bytes:
    """Options that only the reference computes; a tokenizer that folds; steps by row and column, tuned, on a trellis.

    A budget is met as for packs that ship.
    """
    made = own(RARE, folding_tokenizer(), 9000)
    random, tunings = np.random.default_rng(0), {}
    for name, matrix in list(codec.open(made).matrices.items())[::2]:
        tunings[name] = Tuning(*(random.integers(-99, 100, n, dtype=np.int32) for n in matrix.symbols.shape))
    return with_tunings(made, tunings)


@golden
def untied() -> bytes:
    """A head of its own; a tokenizer that normalises."""
    return own(UNTIED, normalising_tokenizer())


@golden
def llama() -> bytes:
    return family(FAMILIES["llama"])


@golden
def llama3() -> bytes:
    """Rotations as by Llama 3, a head of its own, other tokens before and behind a document, words as a whole."""
    config = replace(
        SMALL, tied_head=False, rope_scaling="llama3", rope_factor=4.0, rope_low=0.5, rope_high=8.0, rope_trained=64,
        begin=1, end=2,
    )  # fmt: skip
    return family(config, split_by("llama3", True, 1, 2))


@golden
def smollm() -> bytes:
    """A vocabulary whose frequencies sum to 2^27; rotations scaled linearly."""
    config = replace(
        SMALL, vocab_size=16_400, model_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, norm_epsilon=1e-6,
        rope_scaling="linear", rope_factor=2.0,
    )  # fmt: skip
    weights = family_weights(config)
    weights["tok_emb.weight"][byte_pairs().vocab_size :] = 0
    return codec.compress(weights, config, split_by("smollm"))


@golden
def qwen2() -> bytes:
    return family(replace(SMALL, family="qwen2", qkv_bias=True, num_kv_heads=1), split_by("qwen2"))


@golden
def qwen3() -> bytes:
    return family(replace(SMALL, family="qwen3", qk_norm=True, head_dim=16), split_by("qwen2"))


@golden
def gpt2() -> bytes:
    return family(FAMILIES["gpt2"])


@golden
def nothing() -> bytes:
    return codec.compress({})


@golden
def dtypes() -> bytes:
    """Tensors of every dtype, any bits whatever, in batches."""
    random, state = np.random.default_rng(0), {}
    for name, width in BYTES.items():
        data = random.integers(0, 2 if name == "bool" else 256, 12 * width, np.uint8)
        state[name] = from_bytes(data, name, (3, 4))
    return codec.compress(state, lossless=["*"])


@golden
def quantized() -> bytes:
    """A matrix of every floating dtype; what is no matrix, empty or a scalar."""
    state = {name: noise(32, 33).to(TYPES[name]) for name in sorted(FLOATS)}
    state |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5), "cube": noise(8, 8, 20)}
    return codec.compress(state, quantizer=RowOctaves(8))


@golden
def rows() -> bytes:
    """Steps by row in float16, some of them 0."""
    weights = noise(40, 50) * torch.logspace(-3, 0, 40)[:, None]
    weights[7] = 0
    return codec.compress({"w": weights, "half": noise(30, 40).half()}, quantizer=RowAbsmax(8))


@golden
def trellises() -> bytes:
    """A trellis of every number of states, with rows and columns off it; integers beyond the tables."""

    def quantizer(matrix: Matrix) -> Quantized:
        states = int(matrix.name.split()[0])
        return SensitivityGrid(0.01 if "beyond" in matrix.name else 0.25, states=states)(matrix)

    scales, state = torch.where(torch.arange(60) % 7 == 0, 1e-3, 1.0), {}
    for states in (0, *CODES):
        state[f"{states}"] = noise(40, 60, seed=states) * scales * scales[:40, None]
    for states in (0, 8):
        beyond = noise(20, 52, seed=states)
        beyond[3, 5], beyond[17, 30], beyond[7] = 1e4, -3e4, beyond[7] * 1e3
        state[f"{states} beyond"] = beyond
    return codec.compress(state, quantizer=quantizer)


@golden
def tuned() -> bytes:
    source, random = {"a": noise(40, 60), "b": noise(50, 40)}, np.random.default_rng(0)
    tuning = Tuning(*(random.integers(-127, 128, n, dtype=np.int32) for n in (40, 60)))
    return with_tunings(codec.compress(source, quantizer=SensitivityGrid(0.25)), {"a": tuning})


@golden
def exact() -> bytes:
    """Tensors with parts of their own, not quantized, and planes of every method."""
    few = (noise(160, 104) * 0.3).round()
    state = {"f32": few, "bf16": few.repeat(1, 2).bfloat16(), "f64": few.double(), "noise": noise(40)}
    state |= {"complex": torch.complex(few, few.T.reshape(160, 104)), "i64": (few * 100).long()}
    state |= {"repeated": torch.arange(100).repeat(200).int(), "bools": few > 0}
    return codec.compress(state, lossless=["*"])


@golden
def slabs() -> bytes:
    """Tensors of several slabs: of whole rows, of pieces of rows, and quantized."""
    whole = (torch.arange(3 * (2**21 + 5)) % 7).to(torch.int8).reshape(3, -1)
    pieces = (torch.arange(2 * (2**22 + 3)) % 5).to(torch.uint8).reshape(2, -1)
    sparse = torch.zeros(2050, 2050, dtype=torch.float16)
    sparse[::100, ::90] = 1 + noise(21, 23).half()
    return codec.compress({"whole": whole, "pieces": pieces, "sparse": sparse}, quantizer=RowOctaves(8))


@golden
def batches() -> bytes:
    """More small tensors than a batch holds, of one dtype, and some of others."""
    state = {f"{n:02}": torch.full((63, 256), float(n)).index_fill(1, torch.tensor([n]), 7.0) for n in range(30)}
    return codec.compress(state | {"n": torch.arange(9), "m": torch.arange(300)}, lossless=["*"])


@golden
def vectors() -> bytes:
    """Vectors that are kept in half precision, or in float32 where that is too narrow."""
    state = {"a": noise(70), "b": noise(9).bfloat16(), "c": noise(5) * 1e5, "d": noise(8).double()}
    return codec.compress({**state, "e": noise(4).half()}, vectors="float16")


@golden
def folder() -> bytes:
    """A folder of another project: metadata, files beside the weights, tensors that share memory or are equal."""
    large, small = noise(40, 40), noise(7)
    state = {"large": large, "equal": large.clone(), "small": small, "shared": small, "é / \n": noise(3), "": noise(2)}
    index = b'{"weight_map": {"large": "model-1.safetensors"}}'
    files = {"config.json": b"{}", "vocab.txt": b"one\ntwo\n", "empty": b"", "model.safetensors.index.json": index}
    return PackJob(state, extras=Extras({"format": "pt"}, files)).run().read()


@golden
def bits() -> bytes:
    """A budget, and wishes for some tensors: `underpar pack --budget --bits --lossless --skip`."""
    state = {"embed": noise(64, 32), "head": noise(64, 32, seed=1), "norm": noise(32), "inv_freq": noise(4)}
    state |= {"w": noise(48, 32, seed=2)}
    wishes = {"embed": 10.0, "h*": 3.0}
    return codec.compress(state, budget=5200, bits=wishes, lossless=["norm"], skip=["inv_freq"])
