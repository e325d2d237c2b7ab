"""Golden files of every kind are read for good, and a kind without one is told.

A test here that fails for a file says that archives or packs of some user can no longer be read: change the code, not
the file. `python -m tests.golden.make` makes files of new kinds.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_type_hints

import pytest

from codec.archive.format import FooterFlag, HeaderFlag, Tag
from codec.archive.members import Kind, MemberFlag
from codec.cm.compressor import PLAIN, PRIMERS, RECORDS
from codec.errors import CodecError
from codec.model.byte_pairs import SPLITS
from codec.model.config import ModelConfig
from codec.model.families.registry import FAMILIES
from codec.model.tokenizer import FOLDED, Tokenizer
from codec.model.transformer import TransformerConfig
from codec.numerics.widths import FEW
from codec.pack.parts.dtypes import BYTES, FLOATS
from codec.pack.parts.part import PartTag
from codec.pack.parts.planes import PlaneMethod
from codec.quantization.trellis import CODES
from codec.text.stored import Method
from tests.golden.archives import ARCHIVES
from tests.golden.make import FOLDER, MANIFEST, decoded, made, main
from tests.golden.packs import PACKS
from tests.support.page_reader import Fields, read_archive, read_pack
from tests.system.test_formats import Reader

ENTRIES: dict[str, dict[str, Any]] = json.loads(MANIFEST.read_text())
MOST_BYTES = 1 << 20  # of all files together

Seen = tuple[str, object]
"""A kind of something, and which one."""


@pytest.mark.parametrize("name", ENTRIES)
def test_a_golden_file_decodes_to_what_it_held(name: str) -> None:
    entry = ENTRIES[name]
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == entry["sha256"]
    assert decoded(name, entry.get("pack")) == entry["decoded"]


def test_every_file_is_listed_and_small() -> None:
    paths = sorted(FOLDER.iterdir())
    made = {f"{name}.pack" for name in PACKS} | {f"{name}.upz" for name in ARCHIVES}
    assert {path.name for path in paths} == {*ENTRIES} == made
    assert sum(path.stat().st_size for path in paths) < MOST_BYTES


def test_a_golden_file_is_not_made_anew(capsys: pytest.CaptureFixture[str]) -> None:
    before = (FOLDER / "stored.upz").read_bytes()
    assert main(["stored.upz"]) == 2 and "read for good" in capsys.readouterr().out
    assert main(["other.upz"]) == 2 and main([]) == 0
    assert (FOLDER / "stored.upz").read_bytes() == before


def of_options(kind: type, values: dict[str, Any]) -> Iterator[Seen]:
    """Options of a config: each of several names, and each number or switch that is not the default."""
    for field in fields(kind):
        if get_args(get_type_hints(kind)[field.name]):
            yield f"{kind.__name__}.{field.name}", values[field.name]
        elif values[field.name] != field.default:
            yield f"{kind.__name__}.{field.name}", "not the default"


def of_pack(data: bytes) -> Iterator[Seen]:
    pack = read_pack(data)
    yield from (("section", name) for name, section in pack["sections"].items() if section)
    yield from (("header", name) for name in pack["header"])
    parts = [part for _, found in pack["tensors"] for part in found] + [part for _, part in pack["batches"]]
    yield from (("part", tag) for tag, _ in parts)
    for entry, found in pack["tensors"]:
        yield ("quantized" if found[0][0] else "exact"), entry["dtype"]
        yield "slabs", "several" if len(found) > 1 else "one"
    for entries, _ in pack["batches"]:
        yield from (("batch", entry["dtype"]) for entry in entries)
        yield "batch", "several" if len(entries) > 1 else "one"
        yield from (("batch", "converted") for entry in entries if "kept" in entry)
    if config := json.loads(pack["sections"]["config"] or b"null"):
        yield "family", config.get("family", "own")
        yield "vocabulary", "large" if config["vocab_size"] > FEW else "small"
        yield from of_options(TransformerConfig if "family" in config else ModelConfig, config)
    if model := pack["sections"]["tokenizer"]:
        pairs = json.loads(model) if model[:1] == b"{" else None
        yield "tokenizer", "byte pairs" if pairs else "SentencePiece"
        yield from (("byte pairs", pairs[key]) for key in ("split", "whole") if pairs)
        if not pairs:
            yield "tokenizer", "folds" if model.endswith(FOLDED) else "lossy" if Tokenizer(model).lossy else "lossless"


def of_parts(data: bytes) -> Iterator[Seen]:
    """Yield what only a reader of the tensors sees."""
    reader = Reader(data)
    yield from (("plane", method) for method in reader.methods)
    yield from (("states", states) for states in reader.states)


def of_archive(data: bytes) -> Iterator[Seen]:
    archive = read_archive(data)
    yield from (("header flag", flag) for flag in HeaderFlag if archive["header"]["flags"] & flag)
    yield from (("footer flag", flag) for flag in FooterFlag if archive["flags"] & flag)
    yield from (("chunk", "pack") for _ in archive["packs"])
    for record in archive["records"]:
        yield "chunk", record["tag"]
        if record["tag"] == "stored" and record["payload"]:
            yield "stored", record["payload"][0]
        if record["tag"] == "bytes":
            block = Fields(record["payload"])
            block.varint()
            yield "contexts", block.take(1)[0]
    for member in archive["members"]:
        yield "member", member["kind"]
        yield from (("member flag", flag) for flag in MemberFlag if member["flags"] & flag)
        yield "mode", member["mode"] if member["mode"] in (None, 0o644, 0o755) else "other"
        yield "file", "empty" if member["kind"] == "file" and not member["size"] else "other"


@cache
def seen_in(name: str) -> frozenset[Seen]:
    data = (FOLDER / name).read_bytes()
    if name.endswith(".upz"):
        return frozenset(of_archive(data))
    return frozenset({*of_pack(data), *(of_parts(data) if name != "slabs.pack" else ())})  # four million elements


def wanted() -> set[Seen]:
    """Every kind that the code has a name for."""
    found: set[Seen] = {("chunk", tag.name.lower()) for tag in Tag if tag != Tag.FOOTER}
    for what, names in {
        "stored": Method,
        "header flag": HeaderFlag,
        "footer flag": FooterFlag,
        "member flag": MemberFlag,
        "member": [kind.name.lower() for kind in Kind],
        "mode": (None, 0o644, 0o755, "other"),
        "file": ("empty", "other"),
        "contexts": (PLAIN, *range(1, len(PRIMERS) + 1), RECORDS),
        "section": ("tensors", "header", "config", "tokenizer", "files"),
        "header": ("whole", "twins", "metadata", "files", "recall"),
        "part": PartTag,
        "plane": PlaneMethod,
        "states": (0, *CODES),
        "batch": (*BYTES, "one", "several", "converted"),
        "quantized": FLOATS,
        "slabs": ("one", "several"),
        "family": ("own", *(name for family in FAMILIES for name in family.MODEL_TYPES)),
        "vocabulary": ("small", "large"),
        "tokenizer": ("byte pairs", "SentencePiece", "folds", "lossy", "lossless"),
        "byte pairs": (*SPLITS, True, False),
    }.items():
        found |= {(what, name) for name in names}
    for kind in (ModelConfig, TransformerConfig):
        for name, hint in get_type_hints(kind).items():
            found |= {(f"{kind.__name__}.{name}", value) for value in get_args(hint) or ("not the default",)}
    return found


def lacking(names: Iterable[str]) -> set[Seen]:
    """Kinds that none of some golden files has."""
    return wanted() - {kind for name in names for kind in seen_in(name)}


def test_every_kind_has_a_golden_file() -> None:
    assert lacking(ENTRIES) == set()


@pytest.mark.parametrize(
    ("without", "kind"),
    [
        ("stored.upz", ("stored", Method.XZ)),
        ("qwen3.pack", ("family", "qwen3")),
        ("window.upz", ("header flag", HeaderFlag.WINDOW)),
        ("contexts.upz", ("contexts", 4)),
        ("dtypes.pack", ("batch", "complex32")),
    ],
)
def test_a_kind_without_one_is_told(without: str, kind: Seen) -> None:
    assert kind in lacking({*ENTRIES} - {without})


@pytest.mark.parametrize(
    ("name", "place", "other"),
    [
        ("tree.upz", "codec.archive.members._MODES", (None, 0o755, 0o644)),
        ("tuned.pack", "codec.quantization.quantized.TUNING", 255),
    ],
)
def test_a_format_that_changes_is_told(name: str, place: str, other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: modes in another order, steps tuned in other units. An error is as good as another digest."""
    monkeypatch.setattr(place, other)
    with suppress(CodecError):
        assert decoded(name) != ENTRIES[name]["decoded"]


@pytest.mark.long
def test_what_made_them_makes_them_again() -> None:
    """Byte for byte, with the versions of constraints.txt."""
    assert [name for name in ENTRIES if made(name) != (FOLDER / name).read_bytes()] == []
