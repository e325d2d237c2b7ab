"""Describe a pre-norm transformer of the open families: Llama, Qwen and GPT-2 differ in these numbers alone.

`codec.model.families` reads the numbers from other people's files. Tensors have the names of this package, with the
gates of SwiGLU before its other half in one matrix.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from codec.errors import FormatError
from codec.model.parameter import Parameter

Scaling = Literal["none", "linear", "llama3"]

MAX_VOCABULARY = 160_000
"""The most symbols of which the floor of 1 costs less than 0.002 bit a token (`codec.entropy.frequencies`)."""

MAX_WINDOW = 8192

WINDOW_UNIT = 64
"""Windows are multiples of it: the chunks of `codec.exact.chunks`, so that none lies in two windows."""

MAX_PARAMETERS = 1 << 31
"""The most parameters of a model, 8 GiB of float32: a file of a few bytes may name any shape."""


def whole_window(tokens: int) -> int:
    """Return the longest window of at most so many tokens; `tokens` itself where there is none, which a config refuses.

    >>> whole_window(1000), whole_window(131_072), whole_window(30)
    (960, 8192, 30)
    """
    return min(tokens, MAX_WINDOW) // WINDOW_UNIT * WINDOW_UNIT or tokens


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model of an open family. A document longer than `window` begins anew behind each `window`."""

    family: str = "llama"  # the model_type of its config.json
    vocab_size: int = 49_152
    begin: int = 0  # the token before a document
    end: int = 0  # the token behind a document
    window: int = 2048  # tokens of context
    num_layers: int = 30
    model_dim: int = 576
    hidden_dim: int = 1536  # activations of an MLP
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    activation: Literal["swiglu", "gelu"] = "swiglu"  # gelu: its approximation by tanh
    qkv_bias: bool = False
    biases: bool = False  # of attention's output and of the MLP
    qk_norm: bool = False  # RMS norm of each head of queries and keys, with gains
    tied_head: bool = True  # the table of the embedding is the last layer, too
    positions: Literal["rotary", "learned"] = "rotary"
    rope_base: float = 10_000.0
    rope_scaling: Scaling = "none"
    rope_factor: float = 1.0  # by which slow rotations are stretched
    rope_low: float = 1.0  # llama3: turns in the window of training up to which rotations are slow
    rope_high: float = 4.0  # llama3: turns from which rotations stay as they are
    rope_trained: int = 8192  # llama3: the window of training

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise FormatError(f"config: {field.name} is {value!r}, expected a value of type {kind.__name__}")
        limits: dict[str, tuple[float, float]] = {
            "vocab_size": (4, MAX_VOCABULARY),
            "begin": (0, self.vocab_size - 1),
            "end": (0, self.vocab_size - 1),
            "window": (2, MAX_WINDOW),
            "num_layers": (1, 256),
            "model_dim": (2, 1 << 13),
            "hidden_dim": (2, 1 << 15),
            "num_heads": (1, 256),
            "num_kv_heads": (1, 256),
            "head_dim": (2, 128),
            "norm_epsilon": (1e-12, 1e-2),
            "rope_base": (1.0, 1e9),
            "rope_factor": (1.0, 64.0),
            "rope_low": (0.25, 64.0),
            "rope_high": (0.5, 256.0),
            "rope_trained": (64, 1 << 20),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise FormatError(f"config: {name} is {getattr(self, name)}, expected {low} to {high}")
        choices: dict[str, tuple[str, ...]] = {
            "norm": ("rms", "layer"),
            "activation": ("swiglu", "gelu"),
            "positions": ("rotary", "learned"),
            "rope_scaling": get_args(Scaling),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise FormatError(f"config: {name} is {getattr(self, name)!r}, expected one of {allowed}")
        if self.window % WINDOW_UNIT:
            raise FormatError(f"config: window is {self.window}, expected a multiple of {WINDOW_UNIT}")
        if self.head_dim % 2:
            raise FormatError(f"config: head_dim is {self.head_dim}, expected an even number")
        if self.num_heads % self.num_kv_heads:
            raise FormatError(f"config: num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}")
        if (count := self._largest_parameters()) > MAX_PARAMETERS:
            raise FormatError(f"config: about {count:,} parameters, expected at most {MAX_PARAMETERS:,}")
        if not self.rope_low < self.rope_high:
            raise FormatError(f"config: rope_low is {self.rope_low}, expected less than rope_high {self.rope_high}")

    def _largest_parameters(self) -> int:
        """Count the entries of matrices."""
        layer = 2 * (self.q_dim + self.kv_dim) + self.up_dim + self.hidden_dim
        return self.model_dim * (self.vocab_size * (1 if self.tied_head else 2) + self.num_layers * layer)

    @property
    def q_dim(self) -> int:
        """Return the number of entries of all heads' queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Return the number of entries of all heads' keys, or values."""
        return self.num_kv_heads * self.head_dim

    @property
    def up_dim(self) -> int:
        """Return the number of outputs of an MLP's first matrix; with SwiGLU, gates come first."""
        return (2 if self.activation == "swiglu" else 1) * self.hidden_dim

    @property
    def rope(self) -> tuple[float, int, str, float, float, float, int]:
        """Return the arguments of `codec.numerics.rope.frequencies`."""
        scaled = self.rope_factor, self.rope_low, self.rope_high, self.rope_trained
        return self.rope_base, self.head_dim, self.rope_scaling, *scaled

    @property
    def schedule(self) -> tuple[int, ...]:
        """Return the layer of each block execution."""
        return tuple(range(self.num_layers))

    @property
    def restarts(self) -> bool:
        """Tell whether a document begins anew behind each window; else a token sees the last `window`."""
        return True

    @property
    def logit_softcap(self) -> float:
        """Return infinity: these models have no softcap."""
        return math.inf

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """Make a config of its entries; raises FormatError for unknown or ill-typed entries."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise FormatError(f"config: unknown entries {unknown}, expected some of {sorted(known)}")
        return cls(**values)


def transformer_parameters(config: TransformerConfig) -> dict[str, Parameter]:
    """Return every tensor of the model of `config`, in the order in which packs keep tensors."""
    c, dim = config, config.model_dim
    found = {"tok_emb.weight": Parameter((c.vocab_size, dim), "embedding")}
    if c.positions == "learned":
        found["pos_emb.weight"] = Parameter((c.window, dim), "embedding")
    if not c.tied_head:
        found["lm_head.weight"] = Parameter((c.vocab_size, dim), "embedding")
    for i in range(c.num_layers):
        block = f"blocks.{i}."
        _add_norm(found, c, block + "attn_norm")
        for name, outputs in (("c_q", c.q_dim), ("c_k", c.kv_dim), ("c_v", c.kv_dim)):
            _add_linear(found, f"{block}attn.{name}", outputs, dim, c.qkv_bias)
        if c.qk_norm:
            for name in ("q_norm", "k_norm"):
                found[f"{block}attn.{name}.weight"] = Parameter((c.head_dim,), "vector")
        _add_linear(found, block + "attn.proj", dim, c.q_dim, c.biases)
        _add_norm(found, c, block + "mlp_norm")
        _add_linear(found, block + "mlp.fc", c.up_dim, dim, c.biases)
        _add_linear(found, block + "mlp.proj", dim, c.hidden_dim, c.biases)
    _add_norm(found, c, "norm")
    return found


def _add_norm(found: dict[str, Parameter], config: TransformerConfig, name: str) -> None:
    found[name + ".weight"] = Parameter((config.model_dim,), "vector")
    if config.norm == "layer":
        found[name + ".bias"] = Parameter((config.model_dim,), "vector")


def _add_linear(found: dict[str, Parameter], name: str, outputs: int, inputs: int, bias: bool) -> None:
    found[name + ".weight"] = Parameter((outputs, inputs), "matrix")
    if bias:
        found[name + ".bias"] = Parameter((outputs,), "vector")
