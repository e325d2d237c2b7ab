"""Make the golden archives: every kind of record, member and flag, with a golden pack or one that ships.

`python -m tests.golden.make` writes them.
"""

import json
import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import zstandard

import codec
from codec.archive.encode_files import Settings, encode_files, encode_stream
from codec.archive.format import Header, Tag
from codec.archive.json_lines import split
from codec.archive.members import Kind, Member
from codec.archive.sources import Source, find_sources
from codec.archive.whole.merge import merge
from codec.archive.writer import ArchiveWriter, ChunkWriter, header_of
from codec.cm.compressor import PLAIN, PRIMERS, RECORDS, compress
from codec.entropy.varint import varint
from codec.pack.reader import Pack
from codec.text.documents import Record
from codec.text.open_coder import default_policy
from codec.text.policy import Adaptation, Policy
from codec.text.solid.blocks import open_blocks
from codec.text.stored import Method, _filters, _ppmd
from tests.support.machines import BLOCK, TEXTS, archive
from trainer.data.sample import val_documents

Make = Callable[["Pack | None", Path], bytes]
"""Makes an archive, given its pack, in an empty folder."""


@dataclass(frozen=True)
class Recipe:
    """How a golden archive is made: `pack` is a golden pack, or else the one of that name that ships, or None."""

    pack: str | None
    make: Make


ARCHIVES: dict[str, Recipe] = {}
"""Recipes of the golden archives by name."""

LINES = [
    {"id": 1, "text": "The second line of this file has a text that this line had had before, and nothing else."},
    {"id": 2, "text": "It is a truth universally acknowledged, that a single man in possession of a good fortune."},
    {"text": "It is a truth universally acknowledged, that a single man in possession of a good fortune.", "id": 3},
    {"id": 4, "text": "", "url": "https://example.org/?q=\u00e9"},
    {"id": 5, "text": "A caf\u00e9 by the sea is where they met / parted; nobody knows what became of the letters."},
]


def golden(pack: str | None) -> Callable[[Make], Make]:
    """List a function as what makes the archive of its name."""

    def listed(make: Make) -> Make:
        ARCHIVES[make.__name__] = Recipe(pack, make)
        return make

    return listed


for _name in ("plain", "every", "rare", "untied", "llama", "llama3", "smollm", "qwen2", "qwen3", "gpt2"):
    ARCHIVES[_name] = Recipe(_name, lambda pack, folder, name=_name: archive(name))
    """Independent documents, with the model and as they come; with recall where the pack has tables."""


def prose(size: int) -> bytes:
    """English text with line ends, of a few more bytes than `size`."""
    found, texts = b"", iter(list(val_documents())[5:])
    while len(found) < size:
        found += next(texts).replace(b". ", b".\n") + b"\n\n"
    return found[: found.find(b"\n", size) + 1]


def written(
    records: Sequence[tuple[Tag, bytes, bytes]],
    members: Sequence[Member] = (),
    pack: Pack | None = None,
    adaptation: Adaptation = Adaptation.NONE,
) -> bytes:
    """An archive of records, each a tag, a payload and its original bytes."""
    header = header_of(pack, default_policy(pack, adaptation)) if pack else Header()
    chunks = ChunkWriter(stream := BytesIO(), header)
    for tag, payload, text in records:
        chunks.add(Record(tag, payload, crc32(text), len(text), len(text), 0, 0.0, 0.0))
    chunks.close(members)
    return stream.getvalue()


def encoded(folder: Path, inputs: Sequence[str], pack: Pack | None = None, **settings: object) -> bytes:
    """Make what `underpar encode` makes of files of a folder."""
    target = folder / "archive.upz"
    encode_files(find_sources([folder / name for name in inputs]), target, Settings(pack, **settings))  # type: ignore[arg-type]
    return target.read_bytes()


def put(folder: Path, name: str, content: bytes, mode: int = 0o644, time: int = 1_700_000_000) -> None:
    """Write a file of a mode and a time in seconds, in folders of the same time."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (time, time))


def dated(folder: Path) -> None:
    """Give all folders a mode and a time."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
            os.utime(path, (1_600_000_000, 1_600_000_000))


@golden("plain")
def window(pack: Pack | None, folder: Path) -> bytes:
    """Another window than the model's."""
    assert pack
    with ArchiveWriter(stream := BytesIO(), pack, Policy(20)) as writer:
        writer.append(TEXTS, True)
    return stream.getvalue()


@golden("plain")
def appended(pack: Pack | None, folder: Path) -> bytes:
    """Documents appended twice, of which the first need no model, so that the footer names it."""
    assert pack
    stream = BytesIO()
    for n, part in enumerate((TEXTS[1:3], TEXTS[:1], TEXTS[3:])):
        with ArchiveWriter(stream, pack, append=n > 0) as writer:
            writer.append(part, n == 1)
    return stream.getvalue()


@golden("plain")
def empty(pack: Pack | None, folder: Path) -> bytes:
    """No document."""
    assert pack
    return codec.encode(pack, [])


@golden(None)
def empty_file(pack: Pack | None, folder: Path) -> bytes:
    put(folder, "empty", b"")
    return encoded(folder, ["empty"])


@golden("plain")
def include_model(pack: Pack | None, folder: Path) -> bytes:
    """The pack in front: `encode --include-model --independent`."""
    assert pack and isinstance(pack.source.content, bytes)
    put(folder, "a.txt", TEXTS[0] + b"\n")
    return encoded(folder, ["a.txt"], pack, included=pack.source.content, independent=True)


@golden("small")
def independent(pack: Pack | None, folder: Path) -> bytes:
    """A file that decodes alone: `encode --independent`."""
    put(folder, "text.txt", prose(2000))
    return encoded(folder, ["text.txt"], pack, independent=True)


@golden(None)
def pieces(pack: Pack | None, folder: Path) -> bytes:
    """A file in pieces, each of which decodes alone: `encode --model none --independent`."""
    put(folder, "text.txt", prose(9000))
    return encoded(folder, ["text.txt"], independent=True)


@golden("small")
def solid(pack: Pack | None, folder: Path) -> bytes:
    """Several blocks, so that a reader may begin at each, as by `encode --restart-every`; two files."""
    put(folder, "text.txt", prose(2000))
    put(folder, "noise.bin", np.random.default_rng(0).bytes(300), 0o600)
    return encoded(folder, ["text.txt", "noise.bin"], pack, block=1024)


@golden("small")
def lines(pack: Pack | None, folder: Path) -> bytes:
    """JSON Lines, with equal texts, and literals and lines of every sort."""
    put(folder, "lines.jsonl", json_lines())
    return encoded(folder, ["lines.jsonl"], pack)


@golden(None)
def lines_without_model(pack: Pack | None, folder: Path) -> bytes:
    """`encode --model none --independent`."""
    put(folder, "lines.jsonl", json_lines())
    return encoded(folder, ["lines.jsonl"], independent=True)


def json_lines() -> bytes:
    """Texts written in every way, among lines that have none."""
    found = [json.dumps(line, ensure_ascii=False).encode() for line in LINES]
    found += [json.dumps(LINES[4]).encode(), json.dumps(LINES[4]).replace("/", "\\/").encode()]
    found += [json.dumps(LINES[4], ensure_ascii=False).replace("/", "\\/").encode()]
    found += [found[1].replace(b"truth", b"tr\\u0075th"), found[4].replace(b"sea", b"s\\u0065a")]
    found += [b"no JSON, but a byte \xff", b'{"text": 7}', b"", b'\xef\xbb\xbf{"text": "behind a mark"}\r']
    return b"\n".join(found)


@golden(None)
def tree(pack: Pack | None, folder: Path) -> bytes:
    """A folder with empty files and folders, links, copies, modes, times, and names that are no ASCII."""
    root = folder / "root"
    put(root, "one.txt", BLOCK, 0o755, 1)
    put(root, "sub/same.txt", BLOCK, 0o640)
    put(root, "sub/empty", b"")
    put(root, "sub/deeper/na\u00efve \u2603.txt", b"short\n", 0o4755)
    (root / "nothing").mkdir()
    os.link(root / "one.txt", root / "hard")
    (root / "link").symlink_to("sub/same.txt")
    (root / "dangling").symlink_to("../../nowhere")
    os.utime(root / "link", (5, 5), follow_symlinks=False)
    os.utime(root / "dangling", (6, 6), follow_symlinks=False)
    dated(root)
    return encoded(folder, ["root"])


@golden(None)
def many(pack: Pack | None, folder: Path) -> bytes:
    """Files enough for an index under zstandard."""
    for n in range(24):
        put(folder / "root", f"chapter-{n:03}.txt", f"This is chapter {n} of {n % 7}.\n".encode() * (n % 5))
    dated(folder / "root")
    return encoded(folder, ["root"])


@golden(None)
def appended_files(pack: Pack | None, folder: Path) -> bytes:
    """`encode --append`."""
    for n, name in enumerate(("a.txt", "b.txt")):
        put(folder, name, BLOCK + name.encode())
        encode_files(find_sources([folder / name]), folder / "archive.upz", Settings(), append=n > 0)
    return (folder / "archive.upz").read_bytes()


@golden(None)
def merged(pack: Pack | None, folder: Path) -> bytes:
    """`merge --folders` of two archives, one of them of a folder."""
    put(folder / "root", "a.txt", BLOCK)
    dated(folder / "root")
    put(folder, "b.txt", BLOCK[::-1])
    for name, out in (("root", "one.upz"), ("b.txt", "two.upz")):
        encode_files(find_sources([folder / name]), folder / out, Settings())
    merge([folder / "one.upz", folder / "two.upz"], folder / "archive.upz", folders=True)
    return (folder / "archive.upz").read_bytes()


@golden(None)
def stream(pack: Pack | None, folder: Path) -> bytes:
    """Standard input to standard output: no name, no member."""
    put(folder, "in", BLOCK)
    encode_stream([Source(Member(""), folder / "in")], out := BytesIO(), Settings())
    return out.getvalue()


@golden(None)
def stored(pack: Pack | None, folder: Path) -> bytes:
    """A record under each general compressor."""
    lzma2 = varint(len(BLOCK)) + lzma.compress(BLOCK, lzma.FORMAT_RAW, filters=_filters(len(BLOCK)))
    payloads = {
        Method.RAW: BLOCK,
        Method.ZSTD: zstandard.ZstdCompressor(level=19).compress(BLOCK),
        Method.XZ: lzma2,
        Method.PPMD: _ppmd(BLOCK)[0][1:],
    }
    return written([(Tag.STORED, bytes([method]) + data, BLOCK) for method, data in payloads.items()])


@golden(None)
def contexts(pack: Pack | None, folder: Path) -> bytes:
    """A block of every kind under context mixing."""
    blocks = dict.fromkeys(range(PLAIN, len(PRIMERS) + 1), BLOCK) | {RECORDS: bytes(range(8)) * 9 + BLOCK[:50]}
    records = [(Tag.BYTES, varint(len(text)) + compress(text, kind), text) for kind, text in blocks.items()]
    return written(records, [Member("all", size=sum(map(len, blocks.values())))])


@golden(None)
def large(pack: Pack | None, folder: Path) -> bytes:
    """Files of more than a part, which are several members; JSON Lines that go on without texts."""
    texts, frame = split(json_lines())
    parts = [*texts, frame, TEXTS[0], BLOCK, BLOCK[:20]]
    members = [
        Member("a.jsonl", Kind.JSON_LINES, len(json_lines()), 0o600, -1, len(texts)),
        Member("a.jsonl", Kind.FILE, len(TEXTS[0]) - 5, more=True),
        Member("b", Kind.FILE, 5 + len(BLOCK) - 9),
        Member("copy of a", back=3, size=len(json_lines()) + len(TEXTS[0]) - 5),
        Member("c", Kind.FILE, 9),
        Member("c", Kind.FILE, 20, more=True),
    ]
    return written([(Tag.STORED, bytes([Method.RAW]) + part if part else b"", part) for part in parts], members)


def mixed(pack: Pack | None, folder: Path, adaptation: Adaptation = Adaptation.NONE, size: int = 0) -> bytes:
    """Blocks of a model and contexts together: line ends of three kinds, what the tokenizer loses, no UTF-8."""
    assert pack
    mixing = open_blocks(pack, default_policy(pack, adaptation))._mixing
    blocks = [BLOCK[:100] + b"\rThe   NASA \xe2\x80\xa6\r\n\ncaf\xc3\xa9 iPod \xff\x10", b"One line.\n" * (size // 10)]
    blocks = [block for block in blocks if block]
    assert mixing
    payloads = mixing.encode(blocks)
    records = [(Tag.MIXED, varint(len(b)) + (p.data if p else b""), b) for b, p in zip(blocks, payloads, strict=True)]
    return written(records, [], pack, adaptation)


ARCHIVES["mixed"] = Recipe("plain", partial(mixed, size=33_000))  # in two segments
for _name in ("rare", "untied", "smollm"):
    ARCHIVES[f"mixed_{_name}"] = Recipe(_name, mixed)
ARCHIVES["mixed_recall"] = Recipe("every", partial(mixed, adaptation=Adaptation.RECALL))
