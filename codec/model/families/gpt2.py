"""GPT-2: layer norm and biases everywhere, learned positions, GELU, matrices [inputs, outputs]."""

from collections.abc import Mapping
from typing import Any

from codec.model.families.keys import Keys
from codec.model.families.links import Link, renamed
from codec.model.families.llama import shortest
from codec.model.transformer import TransformerConfig, whole_window

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel"}
ARCHITECTURES = {"gpt2": "gpt2"}


def _config(keys: Keys, names: Mapping[str, str], **more: Any) -> TransformerConfig:
    dim, heads = keys.get(names["dim"], int), keys.get(names["heads"], int)
    return TransformerConfig(
        family="gpt2",
        window=whole_window(keys.get(names["window"], int)),
        num_layers=keys.get(names["layers"], int),
        model_dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // max(1, heads),
        norm="layer",
        activation="gelu",
        qkv_bias=True,
        biases=True,
        positions="learned",
        **more,
    )


def read_config(values: Mapping[str, Any], where: str) -> TransformerConfig:
    """Read a config.json. Raises FormatError that names a key and its value."""
    keys = Keys(values, where)
    keys.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.only("tie_word_embeddings", True)
    keys.only("quantization_config")
    begin = keys.token("bos_token_id", 50_256)
    return _config(
        keys,
        {"dim": "n_embd", "heads": "n_head", "window": "n_positions", "layers": "n_layer"},
        vocab_size=keys.get("vocab_size", int),
        begin=begin,
        end=keys.token("eos_token_id", begin),
        hidden_dim=keys.get("n_inner", int, 4 * keys.get("n_embd", int)),
        norm_epsilon=keys.get("layer_norm_epsilon", float, 1e-5),
    )


def write_config(config: TransformerConfig) -> dict[str, Any]:
    """Make the content of a config.json for a config."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "bos_token_id": config.begin,
        "eos_token_id": config.end,
        "n_positions": config.window,
        "n_layer": config.num_layers,
        "n_embd": config.model_dim,
        "n_inner": config.hidden_dim,
        "n_head": config.num_heads,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": True,
    }


def links(config: TransformerConfig) -> list[Link]:
    """Return the tensors of a folder of transformers, without the prefix that some files have."""
    found = [renamed("tok_emb.weight", "wte.weight"), renamed("pos_emb.weight", "wpe.weight", longer=True)]
    names = {
        "attn_norm": "ln_1",
        "attn.proj": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
    }
    for kind in ("weight", "bias"):
        found.append(renamed(f"norm.{kind}", f"ln_f.{kind}"))
        for i in range(config.num_layers):
            ours, theirs = f"blocks.{i}.", f"h.{i}."
            joint = tuple(f"{ours}attn.c_{name}.{kind}" for name in ("q", "k", "v"))
            found.append(Link(joint, (f"{theirs}attn.c_attn.{kind}",), transposed=True))
            for mine, other in names.items():
                found.append(renamed(f"{ours}{mine}.{kind}", f"{theirs}{other}.{kind}", transposed=True))
    return found


def read_gguf(values: Mapping[str, Any], architecture: str, where: str) -> TransformerConfig:
    """Read the metadata of a GGUF file. Raises FormatError that names a key and its value."""
    keys = Keys(values, where)
    names = {
        "dim": "gpt2.embedding_length",
        "heads": "gpt2.attention.head_count",
        "window": "gpt2.context_length",
        "layers": "gpt2.block_count",
    }
    begin = keys.get("tokenizer.ggml.bos_token_id", int, 50_256)
    return _config(
        keys,
        names,
        vocab_size=len(values.get("tokenizer.ggml.tokens") or ()),
        begin=begin,
        end=keys.get("tokenizer.ggml.eos_token_id", int, begin),
        hidden_dim=keys.get("gpt2.feed_forward_length", int),
        norm_epsilon=shortest(keys.get("gpt2.attention.layer_norm_epsilon", float)),
    )


def gguf_links(config: TransformerConfig) -> list[Link]:
    """Return the tensors of a GGUF file, whose matrices are [outputs, inputs]."""
    found = [
        renamed("tok_emb.weight", "token_embd.weight"),
        renamed("pos_emb.weight", "position_embd.weight", longer=True),
    ]
    names = {
        "attn_norm": "attn_norm",
        "attn.proj": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.fc": "ffn_up",
        "mlp.proj": "ffn_down",
    }
    for kind in ("weight", "bias"):
        found.append(renamed(f"norm.{kind}", f"output_norm.{kind}"))
        for i in range(config.num_layers):
            ours, theirs = f"blocks.{i}.", f"blk.{i}."
            joint = tuple(f"{ours}attn.c_{name}.{kind}" for name in ("q", "k", "v"))
            found.append(Link(joint, (f"{theirs}attn_qkv.{kind}",)))
            for mine, other in names.items():
                found.append(renamed(f"{ours}{mine}.{kind}", f"{theirs}{other}.{kind}"))
    return found
