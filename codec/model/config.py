"""The shape of a model: every number that the float model, the exact model and a pack must agree on."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from codec.errors import FormatError
from codec.model.transformer import TransformerConfig

GATE_INPUTS = 12
"""Leading entries of a normalised row that a gate reads, as in the challenge's sparse gates."""

MAX_FIXED = 1 << 28
"""Entries of random maps, which no byte of a pack stands for: a bound on memory for a hostile file."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the challenge's family. The defaults are the challenge's baseline."""

    vocab_size: int = 1024
    embedding_dim: int = 0  # factorised embedding: width of the table, which a matrix takes to model_dim; 0: no matrix
    tied_head: bool = True  # the table of the embedding is the last layer, too
    window: int = 1024  # tokens of context in one forward pass
    num_layers: int = 9
    model_dim: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    mlp_mult: int = 2
    activation: Literal["relu2", "leaky_relu2", "swiglu"] = "relu2"  # leaky: slope 0.5 before the square
    random_rank: int = 0  # matrices of MLPs are fixed random maps and a learned product of this rank; 0: learned whole
    rope_base: float = 10_000.0
    rope_dims: int = 0  # leading dimensions of a head that rotate; 0 means all
    yarn: float = 1.0  # window over the window of training: slow rotations are stretched to it (YaRN)
    logit_softcap: float = 30.0
    skips: Literal["add", "gated"] = "add"  # how the second half mixes in the activations of the first
    xsa_layers: int = 0  # the last n layers remove the component of attention output along their own value
    ln_scale: bool = False  # scale normalised inputs of layer i by 1/sqrt(i + 1)
    parallel_from: int = 0  # from this layer on attention and MLP read the same input; 0: in no layer
    loop_start: int = 0  # layers loop_start .. loop_end - 1 run loop_count times in all
    loop_end: int = 0
    loop_count: int = 1
    bigram_buckets: int = 0  # rows of the BigramHash table; 0: no table
    bigram_dim: int = 128
    value_dims: int = 0  # width of a table of token embeddings that are projected onto values; 0: no table
    value_layers: int = 2  # the last n layers, which add them
    attention_gate: bool = False  # heads' outputs are multiplied with gates that the block's input opens
    smear_gate: bool = False  # a token's embedding takes up a gated share of the one before it in its document

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise FormatError(f"config: {field.name} is {value!r}, expected a value of type {kind.__name__}")
        limits = {
            "vocab_size": (4, 16_384),
            "embedding_dim": (0, 1 << 14),
            "window": (2, 1 << 16),
            "num_layers": (1, 256),
            "model_dim": (2, 1 << 14),
            "num_heads": (1, 256),
            "num_kv_heads": (1, 256),
            "mlp_mult": (1, 16),
            "xsa_layers": (0, self.num_layers),
            "parallel_from": (0, self.num_layers),
            "loop_start": (0, self.num_layers),
            "loop_end": (0, self.num_layers),
            "loop_count": (1, 16),
            "bigram_buckets": (0, 1 << 24),
            "bigram_dim": (1, 1 << 14),
            "random_rank": (0, 1 << 14),
            "value_dims": (0, 1 << 14),
            "value_layers": (1, 256),
            "rope_base": (1.0, 1e9),
            "yarn": (1.0, 64.0),
            "logit_softcap": (1.0, 1000.0),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise FormatError(f"config: {name} is {getattr(self, name)}, expected {low} to {high}")
        for name, allowed in (("activation", ("relu2", "leaky_relu2", "swiglu")), ("skips", ("add", "gated"))):
            if getattr(self, name) not in allowed:
                raise FormatError(f"config: {name} is {getattr(self, name)!r}, expected one of {allowed}")
        if self.model_dim % self.num_heads or self.head_dim % 2:
            raise FormatError(f"config: model_dim {self.model_dim} / num_heads {self.num_heads} must be an even number")
        if self.num_heads % self.num_kv_heads:
            raise FormatError(f"config: num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise FormatError(f"config: rope_dims is {self.rope_dims}, expected an even number to {self.head_dim}")
        if (self.smear_gate or self.attention_gate) and self.model_dim < GATE_INPUTS:
            raise FormatError(f"config: model_dim is {self.model_dim}, gates read {GATE_INPUTS} entries of it")
        if self.random_rank and (fixed := 2 * self.num_layers * self.up_dim * self.model_dim) > MAX_FIXED:
            raise FormatError(f"config: random maps of up to {fixed} signs, expected at most {MAX_FIXED}")
        if self.embedding_dim and not self.tied_head:
            raise FormatError("config: embedding_dim is set and tied_head is off; a factorised embedding is tied")
        if self.bigram_buckets == 1:
            raise FormatError("config: bigram_buckets is 1, expected 0 or at least 2")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def hidden_dim(self) -> int:
        """Activations of an MLP."""
        return self.mlp_mult * self.model_dim

    @property
    def up_dim(self) -> int:
        """Outputs of an MLP's first matrix: with SwiGLU gates come first."""
        return (2 if self.activation == "swiglu" else 1) * self.hidden_dim

    @property
    def rotary_dims(self) -> int:
        """Dimensions of a head that rotate."""
        return self.rope_dims or self.head_dim

    def parallel(self, layer: int) -> bool:
        """Whether attention and MLP of a layer read the same input."""
        return 0 < self.parallel_from <= layer

    def adds_values(self, layer: int) -> bool:
        """Whether a layer adds embeddings to its values."""
        return self.value_dims > 0 and layer >= self.num_layers - self.value_layers

    @property
    def begin(self) -> int:
        """The token before a document: `codec.model.tokenizer.BOS`."""
        return 1

    @property
    def end(self) -> int:
        """The token behind a document."""
        return 1

    @property
    def restarts(self) -> bool:
        """Whether a document begins anew behind each window; else a token sees the last `window`."""
        return False

    @property
    def schedule(self) -> tuple[int, ...]:
        """The layer of each block execution, loops unrolled."""
        layers = list(range(self.num_layers))
        loop = layers[self.loop_start : self.loop_end]
        return tuple(layers[: self.loop_start] + loop * self.loop_count + layers[self.loop_start + len(loop) :])

    @property
    def encoder_length(self) -> int:
        """Block executions of the first half, whose outputs the second half takes up in reverse."""
        return len(self.schedule) // 2

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Raises FormatError for unknown or ill-typed entries."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise FormatError(f"config: unknown entries {unknown}, expected some of {sorted(known)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Raises FormatError if `text` is not a JSON object of known entries."""
        return cls.from_dict(_json_object(text))


AnyConfig = ModelConfig | TransformerConfig


def read_config(text: str) -> AnyConfig:
    """Read what `to_json` of either config wrote. Raises FormatError for anything else."""
    values = _json_object(text)
    return TransformerConfig.from_dict(values) if "family" in values else ModelConfig.from_dict(values)


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"config: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise FormatError(f"config: found a JSON {type(values).__name__}, expected an object")
    return values
