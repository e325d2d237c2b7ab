"""Plan what a pack holds of a state dict: each tensor exact, in half precision, quantized, or as a twin of another."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Literal

import torch

from codec.errors import FormatError, MismatchError
from codec.model.config import AnyConfig
from codec.model.parameters import Role, parameters
from codec.pack.header import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_HEADER, check_shapes
from codec.pack.parts.batches import MOST_BATCH
from codec.pack.parts.dtypes import FLOATS, size_of, slabs
from codec.pack.parts.tensors import name_of, plain, to_bytes

QUANTIZED_FROM = 1024
"""The least elements of a tensor that is quantized, in a state dict without config. The tensor is floating and has two
dimensions or more. The steps and the header of a smaller tensor would use up what quantization saves."""

OWN_PART = 1 << 16
"""The least bytes of an exact tensor with a part of its own, which can be read alone."""

PREFIXES = ("module.", "_orig_mod.", "model.", "_forward_module.")
"""Prefixes that wrappers (DDP, torch.compile, trainers) put before the names of a model's tensors."""

Vectors = Literal["exact", "float16"]
How = Literal["exact", "half", "quantize"]


@dataclass(frozen=True)
class Rules:
    """The caller's wishes by names of tensors: shell patterns (`*`, `?`, `[...]`), each of which must match a name.

    Attributes:
        lossless: tensors to keep exactly.
        skip: tensors to leave out.
        bits: about how many bits a weight, by pattern; the last pattern that matches counts.
        vectors: how to keep tensors that are not quantized.
    """

    lossless: Sequence[str] = ()
    skip: Sequence[str] = ()
    bits: Mapping[str, float] = field(default_factory=dict)
    vectors: Vectors = "exact"

    def __post_init__(self) -> None:
        if self.vectors not in ("exact", "float16"):
            raise FormatError(f'vectors: {self.vectors!r}, expected "exact" or "float16"')
        for what, patterns in (("lossless", self.lossless), ("skip", self.skip), ("bits", self.bits)):
            if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
                raise FormatError(f"{what}: {patterns!r}, expected a list of patterns such as ['*.inv_freq']")
        for pattern, rate in self.bits.items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.1 <= rate <= 16:
                raise FormatError(f"bits of {pattern!r}: {rate!r}, expected a number from 0.1 to 16")

    def rate(self, name: str) -> float | None:
        """Return the bits a weight that are wished for a tensor; None where there is no wish."""
        return next((r for pattern, r in reversed(list(self.bits.items())) if fnmatchcase(name, pattern)), None)

    def check(self, names: Sequence[str]) -> None:
        """Raise MismatchError for a pattern that matches no name."""
        for what, patterns in (("lossless", self.lossless), ("skip", self.skip), ("bits", self.bits)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise MismatchError(f"{what}: no tensor is named like {pattern!r}; names are {sorted(names)[:5]} …")


@dataclass(frozen=True)
class Item:
    """A tensor to code.

    Attributes:
        name: the tensor's.
        shape: the tensor's.
        dtype: by the name that headers have.
        role: as of `codec.model.parameters`.
        how: quantized, in half precision, or exact.
        bits: the rate that was asked for, if any.
        listed: whether the caller asked for an exact tensor, whatever the values are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    how: How
    bits: float | None = None
    listed: bool = False

    @property
    def own_part(self) -> bool:
        """Return whether the tensor has parts of its own; other tensors share batches."""
        return self.how == "quantize" or (self.how == "exact" and size_of(self.dtype, self.shape) >= OWN_PART)


@dataclass(frozen=True)
class Plan:
    """The tensors in the order of the pack, the names of twins, and the names left out."""

    items: list[Item]
    twins: dict[str, str]
    skipped: list[str]

    @property
    def parts(self) -> list[Item]:
        """Return the tensors with parts of their own."""
        return [item for item in self.items if item.own_part]

    @property
    def vectors(self) -> list[Item]:
        """Return the tensors in batches."""
        return [item for item in self.items if not item.own_part]


def make_plan(state: Mapping[str, torch.Tensor], config: AnyConfig | None, rules: Rules) -> Plan:
    """Decide what becomes of every tensor, and refuse what no reader could restore.

    Args:
        state: tensors by name.
        config: of the model; None for weights only.
        rules: the caller's wishes.

    Raises:
        FormatError: an entry is no tensor, or none that packs keep; or there is more than a pack can hold.
        MismatchError: the config does not have a tensor, or a pattern matches nothing.
    """
    if not isinstance(state, Mapping):
        raise FormatError(f"state dict: a {type(state).__name__}, expected names and tensors; pass model.state_dict()")
    _check_names(state)
    rules.check(list(state))
    skipped = sorted(name for name in state if _match(name, rules.skip))
    names = sorted(set(state) - set(skipped))
    if config:
        if rules != Rules(bits=rules.bits):
            raise FormatError("lossless, skip and vectors: not for a model with a config, whose codec needs grids")
        _check_config(config, state)
        roles = {name: parameter.role for name, parameter in parameters(config).items()}
        _check_rates(rules, roles)
        items = [_model_item(name, plain(name, state[name]), role, rules) for name, role in roles.items()]
        twins: dict[str, str] = {}
    else:
        items = [_item(name, plain(name, state[name]), rules) for name in names]
        twins = _twins(state, items)
    items = sorted((i for i in items if i.name not in twins), key=lambda i: 0 if i.own_part else 1)
    _check_sizes(items)
    return Plan(items, twins, skipped)


def _match(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _item(name: str, tensor: torch.Tensor, rules: Rules) -> Item:
    shape, dtype = tuple(tensor.shape), name_of(tensor.dtype)
    floating, rate = dtype in FLOATS and tensor.numel() > 0, rules.rate(name)
    if rate is not None and not floating:
        raise MismatchError(f"bits: {name} is {dtype} of shape {shape}, expected floating-point weights")
    if floating and not _match(name, rules.lossless):
        if rate is not None or (len(shape) > 1 and tensor.numel() >= QUANTIZED_FROM):
            return Item(name, shape, dtype, "matrix", "quantize", rate)
        if rules.vectors == "float16" and size_of("float32", shape) <= MOST_BATCH:  # what overflows is float32
            return Item(name, shape, dtype, "vector", "half")
    return Item(name, shape, dtype, "vector", "exact", None, _match(name, rules.lossless))


def _check_rates(rules: Rules, roles: Mapping[str, Role]) -> None:
    """Raise MismatchError for a pattern of `bits` that matches vectors alone, which a model keeps as they are."""
    for pattern in rules.bits:
        if not any(fnmatchcase(name, pattern) for name, role in roles.items() if role != "vector"):
            raise MismatchError(f"bits: {pattern!r} names vectors alone; a model's matrices have bits, vectors float16")


def _model_item(name: str, tensor: torch.Tensor, role: Role, rules: Rules) -> Item:
    shape, dtype = tuple(tensor.shape), name_of(tensor.dtype)
    if dtype not in FLOATS:
        raise MismatchError(f"tensor {name}: dtype {dtype}, expected floating-point weights; pass the model's own")
    if role == "vector":
        return Item(name, shape, dtype, role, "half")
    return Item(name, shape, dtype, role, "quantize", rules.rate(name))


def _check_config(config: AnyConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Raise MismatchError if names or shapes are not the config's, with the prefix of a wrapper if there is one."""
    expected = set(parameters(config))
    for prefix in PREFIXES:
        if expected == {name.removeprefix(prefix) for name in state} and all(n.startswith(prefix) for n in state):
            raise MismatchError(
                f"state dict: all {len(state)} names begin with {prefix!r}, the config's do not; pass "
                f"{{name.removeprefix({prefix!r}): tensor for name, tensor in state.items()}}"
            )
    check_shapes(config, {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()})


def _check_names(state: Mapping[str, torch.Tensor]) -> None:
    """Raise FormatError for names that a pack or safetensors cannot hold."""
    total = 0
    for name in state:
        if not isinstance(name, str):
            raise FormatError(f"state dict: a key is {name!r}, expected text; name every tensor")
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise FormatError(f"state dict: name {name!r} is no valid Unicode; rename the tensor")
        if name == "__metadata__":
            raise FormatError("state dict: a tensor is named __metadata__, which safetensors cannot hold; rename it")
        total += len(json.dumps(name)) + 200
    if total > MAX_HEADER:
        raise FormatError(f"state dict: names of about {total} bytes in all, expected at most {MAX_HEADER}")


def _check_sizes(items: Sequence[Item]) -> None:
    total = 0
    for item in items:
        if len(item.shape) > MAX_DIMENSIONS:
            raise FormatError(f"tensor {item.name}: {len(item.shape)} dimensions, expected at most {MAX_DIMENSIONS}")
        if any(n > MAX_ELEMENTS for n in item.shape):
            raise FormatError(f"tensor {item.name}: shape {item.shape}, expected at most {MAX_ELEMENTS} a dimension")
        total += sum(max(1, rows) * max(1, columns) for _, rows, columns in slabs(item.shape))
    if total > MAX_ELEMENTS:
        raise FormatError(f"state dict: {total} elements, expected at most {MAX_ELEMENTS}; pack it in several files")


def _twins(state: Mapping[str, torch.Tensor], items: Sequence[Item]) -> dict[str, str]:
    """Return the tensors that equal another, with its name: large tensors, and small tensors in the same memory."""
    first: dict[object, str] = {}
    found = {}
    for item, key in _keys(state, items):
        if key in first:
            found[item.name] = first[key]
        else:
            first[key] = item.name
    return found


def _keys(state: Mapping[str, torch.Tensor], items: Sequence[Item]) -> Iterator[tuple[Item, object]]:
    """Yield the keys of tensors; equal keys mean equal tensors. Contents are hashed only where samples are equal."""
    samples: dict[object, list[Item]] = {}
    for item in items:
        tensor = state[item.name]
        if not item.own_part:
            if tensor.numel() and isinstance(state, dict):  # other mappings make tensors on access
                yield item, (tensor.data_ptr(), tensor.stride(), item.shape, item.dtype, str(tensor.device))
            continue
        flat = plain(item.name, tensor).reshape(-1) if tensor.is_contiguous() else tensor.detach().cpu().flatten()
        sample = to_bytes(flat[:: max(1, flat.numel() // 61)].clone()).tobytes()
        samples.setdefault((sample, item.shape, item.dtype, item.how, item.bits), []).append(item)
    for key, alike in samples.items():
        for item in alike:
            content = to_bytes(plain(item.name, state[item.name])).data if len(alike) > 1 else b""
            yield item, (key, blake2b(content, digest_size=20).digest() if len(alike) > 1 else sys.intern(item.name))
