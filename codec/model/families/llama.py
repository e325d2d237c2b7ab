"""Llama and its relatives: RMS norm with gains, rotary embeddings, SwiGLU, grouped queries.

Qwen2 adds biases of queries, keys and values; Qwen3 norms of the heads of queries and keys in their place.
"""

from collections.abc import Mapping
from typing import Any

from codec.errors import FormatError
from codec.model.families.keys import Keys
from codec.model.families.links import Link, renamed
from codec.model.transformer import TransformerConfig, whole_window

MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""model_type of a config.json -> the class of transformers that loads it."""

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""general.architecture of a GGUF file -> model_type."""

_PAIRED = "llama"  # the architecture whose GGUF has rows of queries and keys in pairs


def read_config(values: Mapping[str, Any], where: str) -> TransformerConfig:
    """Read a config.json. Raises FormatError that names a key and its value."""
    keys, kind = Keys(values, where), values["model_type"]
    for name, known in {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_interleaved": False,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "quantization_config": (),
    }.items():
        keys.only(name, *([] if known == () else [known]))
    dim, heads = keys.get("hidden_size", int), keys.get("num_attention_heads", int)
    base, scaling = _rope(keys, values, where)
    begin = keys.token("bos_token_id", 0)
    return TransformerConfig(
        family=kind,
        vocab_size=keys.get("vocab_size", int),
        begin=begin,
        end=keys.token("eos_token_id", begin),
        window=whole_window(keys.get("max_position_embeddings", int)),
        num_layers=keys.get("num_hidden_layers", int),
        model_dim=dim,
        hidden_dim=keys.get("intermediate_size", int),
        num_heads=heads,
        num_kv_heads=keys.get("num_key_value_heads", int, heads),
        head_dim=keys.get("head_dim", int, dim // max(1, heads)),
        norm_epsilon=keys.get("rms_norm_eps", float, 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied_head=keys.get("tie_word_embeddings", bool, False),
        rope_base=base,
        **scaling,
    )


def _rope(keys: Keys, values: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    """Return the base of rotations and the fields of their scaling; transformers 5 has both in `rope_parameters`."""
    inner = keys.get("rope_parameters", dict, keys.get("rope_scaling", dict, {}))
    base = inner.get("rope_theta") or keys.get("rope_theta", float, 10_000.0)
    kind = inner.get("rope_type") or inner.get("type") or "default"
    rope = Keys({**inner, "rope_theta": base}, f"{where}: rope_scaling")
    base = rope.get("rope_theta", float)
    if kind == "default":
        return base, {}
    if kind == "linear":
        return base, {"rope_scaling": "linear", "rope_factor": rope.get("factor", float)}
    if kind == "llama3":
        return base, {
            "rope_scaling": "llama3",
            "rope_factor": rope.get("factor", float),
            "rope_low": rope.get("low_freq_factor", float),
            "rope_high": rope.get("high_freq_factor", float),
            "rope_trained": rope.get("original_max_position_embeddings", int),
        }
    raise FormatError(f"{where}: rope_scaling: type is {kind!r}; underpar knows 'default', 'linear' and 'llama3'")


def write_config(config: TransformerConfig) -> dict[str, Any]:
    """Make the content of a config.json for a config."""
    c = config
    scaling: dict[str, Any] | None = None
    if c.rope_scaling != "none":
        scaling = {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling == "llama3" and scaling is not None:
        scaling |= {
            "low_freq_factor": c.rope_low,
            "high_freq_factor": c.rope_high,
            "original_max_position_embeddings": c.rope_trained,
        }
    return {
        "architectures": [MODEL_TYPES[c.family]],
        "model_type": c.family,
        "hidden_act": "silu",
        "vocab_size": c.vocab_size,
        "bos_token_id": c.begin,
        "eos_token_id": c.end,
        "max_position_embeddings": c.window,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.model_dim,
        "intermediate_size": c.hidden_dim,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tied_head,
        "attention_bias": False,
        "rope_theta": c.rope_base,
        "rope_scaling": scaling,
    }


def links(config: TransformerConfig) -> list[Link]:
    """Return the tensors of a folder of transformers."""
    found = [renamed("tok_emb.weight", "model.embed_tokens.weight"), renamed("norm.weight", "model.norm.weight")]
    if not config.tied_head:
        found.append(renamed("lm_head.weight", "lm_head.weight"))
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        found.append(renamed(ours + "attn_norm.weight", theirs + "input_layernorm.weight"))
        found.append(renamed(ours + "mlp_norm.weight", theirs + "post_attention_layernorm.weight"))
        for name in ("q", "k", "v"):
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                found.append(renamed(f"{ours}attn.c_{name}.{kind}", f"{theirs}self_attn.{name}_proj.{kind}"))
            if config.qk_norm and name != "v":
                found.append(renamed(f"{ours}attn.{name}_norm.weight", f"{theirs}self_attn.{name}_norm.weight"))
        found.append(renamed(ours + "attn.proj.weight", theirs + "self_attn.o_proj.weight"))
        halves = (theirs + "mlp.gate_proj.weight", theirs + "mlp.up_proj.weight")
        found.append(Link((ours + "mlp.fc.weight",), halves))
        found.append(renamed(ours + "mlp.proj.weight", theirs + "mlp.down_proj.weight"))
    return found


def read_gguf(values: Mapping[str, Any], architecture: str, where: str) -> TransformerConfig:
    """Read the metadata of a GGUF file. Raises FormatError that names a key and its value."""
    keys, at = Keys(values, where), architecture + "."
    keys.only(at + "rope.scaling.type", "none", "linear")
    dim, heads = keys.get(at + "embedding_length", int), keys.get(at + "attention.head_count", int)
    head_dim = keys.get(at + "attention.key_length", int, dim // max(1, heads))
    keys.only(at + "rope.dimension_count", head_dim)
    keys.only(at + "attention.value_length", head_dim)
    linear = values.get(at + "rope.scaling.type") == "linear"
    begin = keys.get("tokenizer.ggml.bos_token_id", int, 0)
    return TransformerConfig(
        family=ARCHITECTURES[architecture],
        vocab_size=keys.get(at + "vocab_size", int, len(values.get("tokenizer.ggml.tokens") or ())),
        begin=begin,
        end=keys.get("tokenizer.ggml.eos_token_id", int, begin),
        window=whole_window(keys.get(at + "context_length", int)),
        num_layers=keys.get(at + "block_count", int),
        model_dim=dim,
        hidden_dim=keys.get(at + "feed_forward_length", int),
        num_heads=heads,
        num_kv_heads=keys.get(at + "attention.head_count_kv", int, heads),
        head_dim=head_dim,
        norm_epsilon=shortest(keys.get(at + "attention.layer_norm_rms_epsilon", float)),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        tied_head=bool(values["tied_head"]),
        rope_base=keys.get(at + "rope.freq_base", float, 10_000.0),
        rope_scaling="linear" if linear else "none",
        rope_factor=keys.get(at + "rope.scaling.factor", float) if linear else 1.0,
    )


def shortest(value: float) -> float:
    """Return the shortest decimal of a float32: 1e-05 for what GGUF keeps as 9.99999974738e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def gguf_links(config: TransformerConfig) -> list[Link]:
    """Return the tensors of a GGUF file."""
    found = [renamed("tok_emb.weight", "token_embd.weight"), renamed("norm.weight", "output_norm.weight")]
    if not config.tied_head:
        found.append(renamed("lm_head.weight", "output.weight"))
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": 0} if config.family == _PAIRED else {}
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}.", f"blk.{i}."
        found.append(renamed(ours + "attn_norm.weight", theirs + "attn_norm.weight"))
        found.append(renamed(ours + "mlp_norm.weight", theirs + "ffn_norm.weight"))
        for name in ("q", "k", "v"):
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                link = renamed(f"{ours}attn.c_{name}.{kind}", f"{theirs}attn_{name}.{kind}", paired=heads.get(name, 0))
                found.append(link)
            if config.qk_norm and name != "v":
                found.append(renamed(f"{ours}attn.{name}_norm.weight", f"{theirs}attn_{name}_norm.weight"))
        found.append(renamed(ours + "attn.proj.weight", theirs + "attn_output.weight"))
        halves = (theirs + "ffn_gate.weight", theirs + "ffn_up.weight")
        found.append(Link((ours + "mlp.fc.weight",), halves))
        found.append(renamed(ours + "mlp.proj.weight", theirs + "ffn_down.weight"))
    return found
