"""GGUF files: metadata and tensors of a model in one file, whose quantized blocks the `gguf` package makes floats of.

The header is read here: a hostile file's counts are bounded by what the file holds, before memory is taken for them.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from codec.errors import FormatError
from codec.files import open_binary
from codec.model.byte_pairs import BytePairs, control_token, serialize
from codec.model.families.links import to_ours
from codec.model.families.registry import by_architecture
from codec.model.families.tokenizer_json import SEPARATOR
from codec.model.transformer import TransformerConfig, transformer_parameters

MAGIC = b"GGUF"

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 12, 1 << 16, 4
_MOST_ENTRIES = 1 << 20  # bytes of a string, and entries of all arrays: a vocabulary has three of 160,000
_MOST_HEADER = 1 << 26  # bytes before the tensors
_NORMAL = 1  # token_type of words; all others are no text
_SPLITS = {"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3", "qwen2": "qwen2"}
_WHOLE = ("llama-bpe",)  # whose words are looked up whole before they are merged


@dataclass(frozen=True)
class _Info:
    """Say where a tensor is."""

    shape: tuple[int, ...]  # rows first
    kind: int
    offset: int


class _Reader:
    """Bytes of a file from its beginning on."""

    def __init__(self, data: Any, where: str):
        self._data, self._where, self.at, self._entries = data, where, 0, _MOST_ENTRIES

    def take(self, count: int) -> bytes:
        """Return the next bytes. Raises FormatError where there are not so many."""
        if count > len(self._data) - self.at:
            raise FormatError(f"{self._where}: it ends before what its header says is at byte {self.at}")
        if self.at + count > _MOST_HEADER:
            raise FormatError(f"{self._where}: a header of over {_MOST_HEADER} bytes; no model has so much")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def number(self, form: str) -> Any:
        """Return the next number, of a `struct` format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, most: int, what: str) -> int:
        """Return the next 64-bit count. Raises FormatError beyond `most`."""
        if (found := self.number("<Q")) > most:
            raise FormatError(f"{self._where}: {found} {what}, expected at most {most}")
        return int(found)

    def text(self) -> str:
        """Return the next string."""
        return self.take(self.count(_MOST_ENTRIES, "bytes of a string")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return the next value of a kind. Arrays of arrays are not known."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or (inner := self.number("<I")) not in (_STRING, *_SCALARS):
            raise FormatError(f"{self._where}: a value of type {kind} at byte {self.at}; the format has 0 to 12")
        count = self.count(self._entries, "more entries of arrays")
        self._entries -= count
        if inner == _STRING:
            return [self.text() for _ in range(count)]
        form = _SCALARS[inner]
        return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))


def load_gguf(path: str | Path) -> tuple[dict[str, Tensor], TransformerConfig, BytePairs]:
    """Read a GGUF file; its weights become float32.

    Raises:
        FormatError: a damaged file, or what underpar does not know, by key and value.
    """
    where = f"GGUF {path}"
    with open_binary(path, "GGUF") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data, where)
        if reader.take(4) != MAGIC or reader.number("<I") not in (2, 3):
            raise FormatError(f"{where}: no GGUF of version 2 or 3")
        tensors, keys = reader.count(_MOST_TENSORS, "tensors"), reader.count(_MOST_KEYS, "keys")
        values = {}
        for _ in range(keys):
            name = reader.text()
            values[name] = reader.value(reader.number("<I"))
        infos = dict(_read_info(reader, where) for _ in range(tensors))
        unit = values.get("general.alignment", 32)
        if type(unit) is not int or not 1 <= unit <= 1 << 16:
            raise FormatError(f"{where}: general.alignment is {unit!r}, expected 1 to 65,536")
        begin = -(-reader.at // unit) * unit
        values["tied_head"] = "output.weight" not in infos
        architecture = values.get("general.architecture")
        family = by_architecture(architecture, where)
        config = family.read_gguf(values, architecture, where)
        tokenizer = _tokenizer(values, config.begin, config.end, where)
        state = to_ours(
            family.gguf_links(config), _taker(data, begin, infos, where), transformer_parameters(config), where
        )
    return state, config, tokenizer


def _read_info(reader: _Reader, where: str) -> tuple[str, _Info]:
    name, dimensions = reader.text(), reader.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise FormatError(f"{where}: tensor {name} has {dimensions} dimensions, expected at most {_MOST_DIMENSIONS}")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    return name, _Info(shape, reader.number("<I"), reader.number("<Q"))


def _taker(data: Any, begin: int, infos: dict[str, _Info], where: str) -> Callable[[str], Tensor]:
    """Return what reads a tensor by its name, of which no two may have the same bytes: a file has what it says."""
    taken: list[tuple[int, int]] = []  # the first byte and the end of each tensor read

    def take(name: str) -> Tensor:
        if (info := infos.get(name)) is None:
            raise FormatError(f"{where}: tensor {name} is missing; its config says that the model has it")
        try:
            kind = GGMLQuantizationType(info.kind)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise FormatError(f"{where}: tensor {name} is of type {info.kind}, which the gguf package lacks") from error
        width = info.shape[-1] if info.shape else 1
        rows = 1
        for n in info.shape[:-1]:
            rows *= n
        count = rows * (width // block) * size
        if width % block or not 0 < count <= len(data) - begin - info.offset:
            raise FormatError(f"{where}: tensor {name} of shape {info.shape} is not within the file")
        if any(info.offset < last and first < info.offset + count for first, last in taken):
            raise FormatError(f"{where}: tensor {name} has bytes of another tensor; the file is damaged")
        taken.append((info.offset, info.offset + count))
        raw = np.frombuffer(data, np.uint8, count, begin + info.offset).reshape(rows, -1).copy()
        try:
            floats = dequantize(raw, kind)
        except NotImplementedError as error:
            raise FormatError(f"{where}: tensor {name} is {kind.name}, which the gguf package cannot read") from error
        return torch.from_numpy(np.asarray(floats, np.float32).reshape(info.shape))

    return take


def _tokenizer(values: dict[str, Any], begin: int, end: int, where: str) -> BytePairs:
    """Return the tokenizer of a file's own fields. Raises FormatError for one that is no byte-level BPE."""
    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise FormatError(f"{where}: tokenizer.ggml.model is {kind!r}; underpar knows 'gpt2', byte-level BPE")
    if split not in _SPLITS:
        raise FormatError(f"{where}: tokenizer.ggml.pre is {split!r}; underpar knows {', '.join(_SPLITS)}")
    words, merges, kinds = (values.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "merges", "token_type"))
    if not all(isinstance(found, list) for found in (words, merges, kinds)) or len(words) != len(kinds):
        raise FormatError(f"{where}: tokenizer.ggml.tokens, .merges and .token_type are not lists that belong together")
    if not all(isinstance(entry, str) for entry in (*words, *merges)) or len(set(words)) != len(words):
        raise FormatError(f"{where}: tokenizer.ggml.tokens are not different words")
    controls = {n: words[n] for n, of in enumerate(kinds) if of != _NORMAL}
    pairs = [merge.split(" ", 1) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise FormatError(f"{where}: an entry of tokenizer.ggml.merges is no pair of words")
    begin, end = (control_token(controls, SEPARATOR, n) for n in (begin, end))
    ids = {word: n for n, word in enumerate(words)}
    return BytePairs(serialize(ids, pairs, controls, _SPLITS[split], split in _WHOLE, begin, end))
