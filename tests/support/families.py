"""Tiny random models of every open family, with a byte-level BPE of some hundred words."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import codec
from codec.model.byte_pairs import BytePairs
from codec.model.families.tokenizer_json import from_tokenizer_json
from codec.model.transformer import TransformerConfig
from codec.pack.reader import Pack
from trainer.data.sample import train_documents
from trainer.model.transformer import Transformer

LLAMA = TransformerConfig(
    vocab_size=400, begin=0, end=0, window=64, num_layers=2, model_dim=36, hidden_dim=50, num_heads=6, num_kv_heads=2,
    head_dim=10, rope_base=500.0,
)  # fmt: skip
"""Nothing is a multiple of the sizes that kernels work in."""

FAMILIES = {
    "llama": LLAMA,
    "llama, scaled rotations and a head of its own": replace(
        LLAMA, tied_head=False, rope_scaling="llama3", rope_factor=4.0, rope_trained=64, begin=1, end=2
    ),
    "qwen2": replace(LLAMA, family="qwen2", qkv_bias=True, num_heads=4, num_kv_heads=1),
    "qwen3": replace(LLAMA, family="qwen3", qk_norm=True, head_dim=16),
    "gpt2": TransformerConfig(
        family="gpt2", vocab_size=400, window=64, num_layers=2, model_dim=40, hidden_dim=60, num_heads=4,
        num_kv_heads=4, head_dim=10, norm="layer", activation="gelu", qkv_bias=True, biases=True, positions="learned",
    ),
}  # fmt: skip


def family_weights(config: TransformerConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of which every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in Transformer(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.startswith(("tok_emb", "pos_emb", "lm_head")):
            weights[name] = 0.4 * noise
        elif tensor.ndim == 2:
            weights[name] = noise * tensor.shape[1] ** -0.5
        else:
            weights[name] = float(name.endswith(".weight")) + 0.3 * noise
    return weights


@lru_cache
def tokenizer_json(controls: tuple[str, ...] = ("<|endoftext|>", "<a>", "<b>")) -> Mapping[str, object]:
    """A `tokenizer.json` as Hugging Face's library writes one, of GPT-2's form."""
    import json

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=list(controls), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text.decode() for text, _ in zip(train_documents(), range(20), strict=False)], trainer)
    return json.loads(made.to_str())


@lru_cache
def byte_pairs(begin: int = 0, end: int = 0) -> BytePairs:
    """The tokenizer of `tokenizer_json`; 1 and 2 are control tokens, too."""
    controls = ("<|endoftext|>" if begin == end == 0 else "<c>", "<a>", "<b>")
    return from_tokenizer_json(dict(tokenizer_json(controls)), begin, end)


@lru_cache
def family_pack(config: TransformerConfig, seed: int = 0) -> Pack:
    """A pack of random weights."""
    blob = codec.compress(family_weights(config, seed), config, byte_pairs(config.begin, config.end))
    return codec.open(blob)
