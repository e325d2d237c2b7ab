"""The tensors of a model: name, shape and role of each, from its config; the names are the challenge baseline's."""

from codec.model.config import GATE_INPUTS, AnyConfig, ModelConfig
from codec.model.parameter import Parameter as Parameter
from codec.model.parameter import Role as Role
from codec.model.transformer import TransformerConfig, transformer_parameters


def parameters(config: AnyConfig) -> dict[str, Parameter]:
    """Return every tensor of the model of `config`, in the order of packs."""
    return transformer_parameters(config) if isinstance(config, TransformerConfig) else _parameters(config)


def _parameters(config: ModelConfig) -> dict[str, Parameter]:
    c, dim = config, config.model_dim
    found = {"tok_emb.weight": Parameter((c.vocab_size, c.embedding_dim or dim), "embedding")}
    if c.embedding_dim:
        found["embed_proj.weight"] = Parameter((dim, c.embedding_dim), "matrix")
    if not c.tied_head:
        found["lm_head.weight"] = Parameter((c.vocab_size, dim), "embedding")
    if c.smear_gate:
        found["smear.gate"] = Parameter((GATE_INPUTS,), "vector")
        found["smear.scale"] = Parameter((1,), "vector")
    if c.bigram_buckets:
        found["bigram.embed.weight"] = Parameter((c.bigram_buckets, c.bigram_dim), "hash")
        found["bigram.proj.weight"] = Parameter((dim, c.bigram_dim), "matrix")
        found["bigram.scale"] = Parameter((1,), "vector")
    if c.value_dims:
        found["values.embed.weight"] = Parameter((c.vocab_size, c.value_dims), "hash")
        found["values.proj.weight"] = Parameter((c.kv_dim, c.value_dims), "matrix")
    for i in range(c.num_layers):
        block = f"blocks.{i}."
        found[block + "attn.c_q.weight"] = Parameter((dim, dim), "matrix")
        found[block + "attn.c_k.weight"] = Parameter((c.kv_dim, dim), "matrix")
        found[block + "attn.c_v.weight"] = Parameter((c.kv_dim, dim), "matrix")
        found[block + "attn.proj.weight"] = Parameter((dim, dim), "matrix")
        for name, outputs, inputs in (("mlp.fc", c.up_dim, dim), ("mlp.proj", dim, c.hidden_dim)):
            if c.random_rank:
                found[f"{block}{name}.inner.weight"] = Parameter((c.random_rank, inputs), "matrix")
                found[f"{block}{name}.outer.weight"] = Parameter((outputs, c.random_rank), "matrix")
                found[f"{block}{name}.scale"] = Parameter((outputs,), "vector")
            else:
                found[f"{block}{name}.weight"] = Parameter((outputs, inputs), "matrix")
        found[block + "attn.q_gain"] = Parameter((c.num_heads,), "vector")
        if c.adds_values(i):
            found[block + "attn.value_scale"] = Parameter((1,), "vector")
        if c.attention_gate:
            found[block + "attn.gate"] = Parameter((c.num_heads, GATE_INPUTS), "vector")
        found[block + "attn_scale"] = Parameter((dim,), "vector")
        found[block + "mlp_scale"] = Parameter((dim,), "vector")
        found[block + "resid_mix"] = Parameter((2, dim), "vector")
    if count := c.encoder_length:
        found["skip_weights"] = Parameter((count, dim), "vector")
        if c.skips == "gated":
            found["skip_gates"] = Parameter((count, dim), "vector")
    return found
