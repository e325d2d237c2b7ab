"""The shape of a model: every number on which the float model, the exact model and a pack must agree."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from codec.errors import FormatError
from codec.model.transformer import TransformerConfig

GATE_INPUTS = 12
"""Leading entries of a normalised row that a gate reads: the number of the challenge's sparse gates."""

MAX_FIXED = 1 << 26
"""Most entries of random maps. They take no byte of a pack, so this bounds the memory a hostile file can ask for."""

MAX_TURNS = 1 << 20
"""Most pairs of rotating dimensions times positions: a table of 16 MiB that takes two seconds to make."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the challenge's family; the defaults are the challenge's baseline."""

    vocab_size: int = 1024
    embedding_dim: int = 0  # width of a factorised embedding, which a matrix maps to model_dim; 0: not factorised
    tied_head: bool = True  # the output head is the embedding table
    window: int = 1024  # tokens of context in one forward pass
    num_layers: int = 9
    model_dim: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    mlp_mult: int = 2
    activation: Literal["relu2", "leaky_relu2", "swiglu"] = "relu2"  # leaky: slope 0.5 before the square
    random_rank: int = 0  # MLP matrices are fixed random maps plus a learned product of this rank; 0: learned whole
    rope_base: float = 10_000.0
    rope_dims: int = 0  # leading dimensions of a head that rotate; 0 means all
    yarn: float = 1.0  # window over the window of training; slow rotations are stretched to the new window (YaRN)
    logit_softcap: float = 30.0
    skips: Literal["add", "gated"] = "add"  # how blocks of the second half take in the activations of the first half
    xsa_layers: int = 0  # the last n layers remove the component of attention output along their own value
    ln_scale: bool = False  # scale normalised inputs of layer i by 1/sqrt(i + 1)
    parallel_from: int = 0  # from this layer on attention and MLP read the same input; 0: in no layer
    loop_start: int = 0  # layers loop_start .. loop_end - 1 run loop_count times in all
    loop_end: int = 0
    loop_count: int = 1
    bigram_buckets: int = 0  # rows of the BigramHash table; 0: no table
    bigram_dim: int = 128
    value_dims: int = 0  # width of a table of token embeddings that are projected onto values; 0: no table
    value_layers: int = 2  # the last n layers, which add the projected embeddings to their values
    attention_gate: bool = False  # each head's output is multiplied by a sigmoid of the block's input
    smear_gate: bool = False  # to a token's embedding, a gated share of its predecessor's in the document is added

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
            "logit_softcap": (1.0, 100.0),  # the table of 100 takes a second to make
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
        if (turns := self.window * self.rotary_dims // 2) > MAX_TURNS:
            raise FormatError(f"config: {turns} rotations of window times rope_dims, expected at most {MAX_TURNS}")
        if self.embedding_dim and not self.tied_head:
            raise FormatError("config: embedding_dim is set and tied_head is off; a factorised embedding is tied")
        if self.bigram_buckets == 1:
            raise FormatError("config: bigram_buckets is 1, expected 0 or at least 2")

    @property
    def head_dim(self) -> int:
        """Return the dimensions of a head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Return the outputs of the key matrix, and of the value matrix."""
        return self.num_kv_heads * self.head_dim

    @property
    def hidden_dim(self) -> int:
        """Return the number of activations of an MLP."""
        return self.mlp_mult * self.model_dim

    @property
    def up_dim(self) -> int:
        """Return the outputs of an MLP's first matrix: with SwiGLU, gates, then values."""
        return (2 if self.activation == "swiglu" else 1) * self.hidden_dim

    @property
    def rotary_dims(self) -> int:
        """Return the number of dimensions of a head that rotate."""
        return self.rope_dims or self.head_dim

    def parallel(self, layer: int) -> bool:
        """Return whether attention and MLP of a layer read the same input."""
        return 0 < self.parallel_from <= layer

    def adds_values(self, layer: int) -> bool:
        """Return whether a layer adds embeddings to its values."""
        return self.value_dims > 0 and layer >= self.num_layers - self.value_layers

    @property
    def begin(self) -> int:
        """Return the token before a document: `codec.model.tokenizer.BOS`."""
        return 1

    @property
    def end(self) -> int:
        """Return the token behind a document."""
        return 1

    @property
    def restarts(self) -> bool:
        """Tell whether a document begins anew behind each window; else a token sees the last `window`."""
        return False

    @property
    def schedule(self) -> tuple[int, ...]:
        """Return the layer of each block execution, with loops unrolled."""
        layers = list(range(self.num_layers))
        loop = layers[self.loop_start : self.loop_end]
        return tuple(layers[: self.loop_start] + loop * self.loop_count + layers[self.loop_start + len(loop) :])

    @property
    def encoder_length(self) -> int:
        """Return the block executions of the first half, whose outputs the second half takes in in reverse order."""
        return len(self.schedule) // 2

    def to_json(self) -> str:
        """Return the config as JSON, for `from_json`."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Make a config of named values.

        Raises:
            FormatError: an unknown or ill-typed entry.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise FormatError(f"config: unknown entries {unknown}, expected some of {sorted(known)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Make a config of the JSON object that `to_json` writes.

        Raises:
            FormatError: `text` is not a JSON object of known entries.
        """
        return cls.from_dict(_json_object(text))


AnyConfig = ModelConfig | TransformerConfig


def read_config(text: str) -> AnyConfig:
    """Read what `to_json` of either config wrote. Raises FormatError for anything else."""
    values = _json_object(text)
    return TransformerConfig.from_dict(values) if "family" in values else ModelConfig.from_dict(values)


def metadata_config(metadata: Mapping[str, str]) -> AnyConfig | None:
    """Read the config in the metadata of a checkpoint of this project; None for other projects' weights.

    Raises:
        FormatError: a config of this project that is broken.

    >>> metadata_config({"config": "of another project"}) is None
    True
    """
    try:
        values = _json_object(metadata["config"])
    except (KeyError, FormatError):
        return None
    return read_config(metadata["config"]) if {"vocab_size", "model_dim"} <= values.keys() else None


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"config: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise FormatError(f"config: found a JSON {type(values).__name__}, expected an object")
    return values
