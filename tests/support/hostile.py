"""Hostile files, each with a number that its content does not bear out, and what reading them costs.

`python -m tests.support.hostile` reads every one in a process of its own, forked from one that has loaded and compiled
everything, and prints what came of each, a line of JSON: {name: [error, message, seconds of CPU, bytes of memory]}.
"""

import json
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
import zstandard
from safetensors.torch import save

import codec
from codec.archive.format import Header, Index, Tag, write_chunk, write_footer, write_header
from codec.archive.journal import Journal
from codec.archive.members import Kind, Member
from codec.archive.reader import ArchiveReader
from codec.archive.whole.salvage import salvage, scan
from codec.edits.coder import put_edits
from codec.entropy import range_coder
from codec.entropy.varint import varint
from codec.model.byte_pairs import BytePairs
from codec.model.checkpoint import load_checkpoint
from codec.model.families.gguf import load_gguf
from codec.model.weight_files import open_weights
from codec.pack.container import read_container, write_container
from codec.text.stored import unstore
from eval.score.challenge_file import read_content
from tests.support.fuzzing import archives, blob, pack
from trainer.data.shards import MAGIC, read_shard

SECONDS, MEMORY = 20, 1 << 28
"""What reading a hostile file may cost: seconds of CPU and bytes of memory."""

FILES: dict[str, Callable[[], object]] = {}
"""What reads each file, by the name that docs/bounds.md has."""


def hostile(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def add(read: Callable[[], object]) -> Callable[[], object]:
        FILES[name] = read
        return read

    return add


# Packs


def shrunk(plain: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(plain)


def plain(section: bytes) -> Any:
    return json.loads(zstandard.ZstdDecompressor().decompress(section))


def read_pack(data: bytes) -> None:
    opened = codec.open(data)
    opened.state_dict()
    _ = opened.files
    if opened.config:
        opened.exact()


def with_section(name: str, content: bytes) -> bytes:
    return write_container({**read_container(blob()), name: content})


def with_header(**values: Any) -> None:
    header = plain(read_container(blob())["header"])
    read_pack(with_section("header", shrunk(json.dumps({**header, **values}).encode())))


def weights_only(tensors: list[Any], content: bytes, vectors: Any = (), batches: Any = (), **more: Any) -> None:
    """Read a pack without a model."""
    header = {"arithmetic": 1, "tensors": tensors, "vectors": list(vectors), "batches": list(batches), **more}
    sections = {"tensors": content, "header": shrunk(json.dumps(header).encode()), "config": b"", "tokenizer": b""}
    read_pack(write_container(sections))


def with_config(**values: Any) -> None:
    config = plain(read_container(blob())["config"])
    read_pack(with_section("config", shrunk(json.dumps({**config, **values}).encode())))


def open_family(**values: Any) -> None:
    config = {"family": "llama", "vocab_size": 300, "window": 64, "num_layers": 1, "model_dim": 16, "hidden_dim": 16}
    config |= {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
    read_pack(with_section("config", shrunk(json.dumps({**config, **values}).encode())))


def entry(shape: list[int], parts: list[int], name: str = "w") -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32", "parts": parts}


NESTED = b'{"x": [' + b"[]," * (5 << 20) + b"[]]}"
"""JSON that takes 24 times its size when parsed, and a five-thousandth of it under zstandard."""


@hostile("pack: sections")
def _() -> None:
    data = blob()
    codec.open(data[:-38] + struct.pack("<HI", 65_535, crc32(b"")) + data[-32:])


@hostile("pack: length of a section")
def _() -> None:
    data = write_container({"tensors": b"", "header": b"x"})
    at = len(data) - 38 - 24
    table = data[at - 24 : at] + data[at : at + 12] + struct.pack("<QI", 1 << 63, 0)
    codec.open(data[: at - 24] + table + struct.pack("<HI", 2, crc32(table)) + data[-32:])


@hostile("pack: size of the header's frame")
def _() -> None:
    read_pack(with_section("header", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(9)))


@hostile("pack: JSON of the header")
def _() -> None:
    read_pack(with_section("header", shrunk(NESTED)))


@hostile("pack: JSON of the config")
def _() -> None:
    read_pack(with_section("config", shrunk(NESTED)))


@hostile("pack: slabs of tensors")
def _() -> None:
    weights_only([entry([1 << 20, 1 << 20], [1], f"w{n}") for n in range(5000)], b"")


@hostile("pack: elements")
def _() -> None:
    weights_only([entry([1 << 31, 1], [1] * 512)], bytes(512))


@hostile("pack: rows of nothing")
def _() -> None:
    weights_only([entry([1 << 31, 0], [1] * 512)], bytes(512))


@hostile("pack: elements of a dtype")
def _() -> None:
    vector = {"shape": [(1 << 26) // 16], "dtype": "complex128"}
    weights_only([], bytes(40), [{**vector, "name": f"v{n}"} for n in range(40)], [[1, 1]] * 40)


@hostile("pack: dimensions")
def _() -> None:
    weights_only([entry([1] * 65, [1])], b"x")


@hostile("pack: lengths of parts")
def _() -> None:
    weights_only([entry([4], [1 << 47])], b"x")


@hostile("pack: integers of a matrix")
def _() -> None:
    """2^26 weights whose stream has 8 bytes."""
    content = b"\x01" + struct.pack("<hHB", 0, 0, 0) + bytes(8)
    part = content + struct.pack("<I", crc32(content))
    weights_only([entry([1 << 13, 1 << 13], [len(part)] * 16)], part * 16)


@hostile("pack: states of a trellis")
def _() -> None:
    content = b"\x01" + struct.pack("<hHB", 0, 7, 255) + bytes(8)
    part = content + struct.pack("<I", crc32(content))
    weights_only([entry([4, 4], [len(part)])], part)


@hostile("pack: bytes of a plane")
def _() -> None:
    """A plane of 2^22 bytes that unpacks to a thousand times as many."""
    plane = shrunk(bytes(1 << 30))
    content = b"\x00" + struct.pack("<BI", 1, len(plane)) + plane
    weights_only(
        [],
        (part := content + struct.pack("<I", crc32(content))),
        [{**entry([1 << 18], []), "parts": 0}],
        [[1, len(part)]],
    )


@hostile("pack: tensors of a batch")
def _() -> None:
    weights_only([], b"x", [{"name": "w", "shape": [1 << 25], "dtype": "float32"}], [[1 << 40, 1]])


@hostile("pack: bytes of a batch")
def _() -> None:
    weights_only([], b"x", [{"name": "w", "shape": [1 << 25], "dtype": "float32"}], [[1, 1]])


@hostile("pack: twins")
def _() -> None:
    weights_only([], b"", twins={"a": "b", "b": "a"})


@hostile("pack: lengths of files")
def _() -> None:
    weights_only([], b"", files={"config.json": 1 << 40})


@hostile("pack: tables of recall")
def _() -> None:
    with_header(recall={"patterns": [[0] * 8] * 16, "rest": [[0] * 8] * 13, "similarities": [[1 << 40] * 8] * 12})


# Configs


@hostile("config: layers")
def _() -> None:
    with_config(num_layers=10**9)


@hostile("config: layers that are not there")
def _() -> None:
    with_config(num_layers=256, loop_end=256, loop_count=16)


@hostile("config: window and rotating dimensions")
def _() -> None:
    with_config(window=1 << 16, model_dim=1 << 14, num_heads=1)


@hostile("config: softcap")
def _() -> None:
    with_config(logit_softcap=1000.0)


@hostile("config: random maps")
def _() -> None:
    with_config(random_rank=1, model_dim=1 << 13, num_layers=1, mlp_mult=2)


@hostile("config: vocabulary")
def _() -> None:
    with_config(vocab_size=1 << 30)


@hostile("config: numbers that are none")
def _() -> None:
    with_config(rope_base=float("nan"))


@hostile("config: buckets of bigrams")
def _() -> None:
    with_config(bigram_buckets=1 << 24, bigram_dim=1 << 14)


@hostile("config of an open family: window")
def _() -> None:
    open_family(window=1 << 40)


@hostile("config of an open family: scaling of rotations")
def _() -> None:
    open_family(rope_scaling="llama3", rope_factor=1e308, rope_trained=1 << 60)


@hostile("config of an open family: vocabulary")
def _() -> None:
    open_family(vocab_size=160_000, model_dim=1 << 13)


# Tokenizers


@hostile("tokenizer: size of its frame")
def _() -> None:
    read_pack(with_section("tokenizer", shrunk(bytes(1 << 24))))


@hostile("tokenizer: pieces")
def _() -> None:
    codec.model.tokenizer.Tokenizer(b"\x0a\x00" * (8 << 20))


@hostile("tokenizer: words")
def _() -> None:
    BytePairs(json.dumps({"words": ["a"] * (1 << 18), "controls": [], "merges": [[], []], "split": "gpt2"}).encode())


@hostile("tokenizer: merges")
def _() -> None:
    words = [None, "a", "b", "ab"]
    values = {"words": words, "controls": [[0, "x"]], "merges": [[1 << 60], [1 << 60]], "split": "gpt2", "whole": False}
    BytePairs(json.dumps({**values, "begin": 0, "end": 0}).encode())


# Archives


def read_archive(data: bytes) -> None:
    ArchiveReader(BytesIO(data), pack()).decode()


def footer(index: bytes, flags: int, before: bytes = b"UPZ\x01") -> bytes:
    """A header and a footer whose index says anything, with a checksum that fits."""
    chunk = varint(8 * (1 + len(index)) + 7) + bytes([flags]) + index
    crc, size = crc32(chunk, crc32(before[:4])), len(chunk) + 5
    own = 1
    while len(varint(size + own)) > own:
        own += 1
    return before + chunk + struct.pack("<I", crc) + varint(size + own)[::-1] + b"Z"


def with_record(tag: Tag, payload: bytes, size: int, crc: int = 0, members: Any = ()) -> bytes:
    """An archive of one record that states `size` original bytes."""
    header = Header(bytes.fromhex(pack().sha256)[:8]) if tag in (Tag.MODELLED, Tag.MIXED) else Header()
    chunk = write_chunk(tag, crc, payload)
    index = Index(header, header, np.array([len(chunk)]), np.array([size]), list(members), [])
    return write_header(header) + chunk + write_footer(index)


@hostile("archive: bytes of the footer")
def _() -> None:
    read_archive(archives()[0][:-3] + b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff"[::-1] + b"Z")


@hostile("archive: size of the index's frame")
def _() -> None:
    read_archive(footer(b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(9), 8))


@hostile("archive: records")
def _() -> None:
    read_archive(footer(varint(1 << 60), 0))


@hostile("archive: records by a small index")
def _() -> None:
    read_archive(footer(shrunk(varint(8_000_000) + bytes(16_000_000)), 8))


@hostile("archive: original bytes of a record")
def _() -> None:
    read_archive(with_record(Tag.STORED, b"\x00x", 1 << 62))


@hostile("archive: lengths of records")
def _() -> None:
    index = varint(3) + varint((1 << 63) - 1) * 2 + varint(1) * 3 + varint(0)
    read_archive(footer(index, 0, b"UPZ\x01" + bytes(40)))


@hostile("archive: gaps")
def _() -> None:
    read_archive(footer(varint(0) + varint(1 << 60) + varint(0), 4))


@hostile("archive: members")
def _() -> None:
    read_archive(footer(varint(0) + varint(1 << 60), 0))


@hostile("archive: length of a name")
def _() -> None:
    read_archive(footer(varint(0) + varint(1) + bytes([0]) + varint(1 << 60), 0))


@hostile("archive: folders of names")
def _() -> None:
    """Two names of 15,000 folders each, in a few hundred bytes: refused, as the first is a file."""
    name = b"a/" * 15_000 + b"a"
    members = b"".join(b"\0" + varint(len(n)) + n + varint(0) for n in (name, name + b"/b"))
    read_archive(footer(shrunk(varint(0) + varint(2) + members), 8))


@hostile("archive: window")
def _() -> None:
    header = Header(bytes.fromhex(pack().sha256)[:8], window=1 << 41)
    chunk = write_chunk(Tag.MODELLED, 0, b"x")
    index = Index(header, header, np.array([len(chunk)]), np.array([1]), [], [])
    read_archive(write_header(header) + chunk + write_footer(index))


@hostile("archive: an equal record that is not there")
def _() -> None:
    read_archive(with_record(Tag.SAME, varint(1 << 40), 1))


@hostile("archive: an equal record that is itself")
def _() -> None:
    read_archive(with_record(Tag.SAME, varint(0), 1))


@hostile("archive: copies of a file")
def _() -> None:
    """A thousand copies of a gigabyte that count against a bound on what is restored."""
    data = shrunk(bytes(1 << 20))
    first = Member("a", Kind.FILE, 1 << 20)
    copies = [Member(f"b{n}", back=n + 1, size=1 << 20) for n in range(1000)]
    packed = with_record(Tag.STORED, b"\x01" + data, 1 << 20, crc32(bytes(1 << 20)), [first, *copies])
    ArchiveReader(BytesIO(packed), pack(), most_bytes=1 << 24)


@hostile("archive: a copy of what is no file")
def _() -> None:
    read_archive(footer(varint(0) + varint(1) + bytes([64]) + varint(1) + b"a" + varint(1 << 40), 0))


@hostile("archive: documents of JSON Lines")
def _() -> None:
    read_archive(footer(varint(0) + varint(1) + bytes([1]) + varint(1) + b"a" + varint(0) + varint(1 << 60), 0))


@hostile("archive: bytes and exceptions of JSON Lines")
def _() -> None:
    frame = b"\x00" + bytes([8]) + varint(1 << 60) + varint(1 << 60)
    stored = [b"\x00" + frame]
    chunks = [write_chunk(Tag.STORED, crc32(b"t"), b"\x00t"), write_chunk(Tag.STORED, crc32(frame), stored[0])]
    member = Member("a.jsonl", Kind.JSON_LINES, 1 << 50, documents=1)
    index = Index(Header(), Header(), np.array(list(map(len, chunks))), np.array([1, len(frame)]), [member], [])
    reader = ArchiveReader(BytesIO(write_header(Header()) + b"".join(chunks) + write_footer(index)))
    reader.open("a.jsonl").read()


@hostile("archive: a zstandard frame's size")
def _() -> None:
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 30) + bytes(9)
    read_archive(with_record(Tag.STORED, b"\x01" + frame, 1 << 30))


@hostile("archive: bytes under LZMA2")
def _() -> None:
    read_archive(with_record(Tag.STORED, b"\x02" + varint(1 << 30) + bytes(9), 1 << 30))


@hostile("archive: bytes under PPMd")
def _() -> None:
    read_archive(with_record(Tag.STORED, b"\x03" + varint(1 << 30) + bytes([6, 27]) + bytes(9), 1 << 30))


@hostile("archive: order and memory of PPMd")
def _() -> None:
    unstore(b"\x03" + varint(9) + bytes([255, 255]) + bytes(9), 9)


@hostile("archive: bytes of a block of contexts")
def _() -> None:
    read_archive(with_record(Tag.BYTES, varint(1 << 30) + b"\x01" + bytes(9), 1 << 30))


@hostile("archive: a block of contexts in a few bytes")
def _() -> None:
    read_archive(with_record(Tag.BYTES, varint(1 << 26) + b"\x01" + bytes(9), 1 << 26))


@hostile("archive: length of records of contexts")
def _() -> None:
    read_archive(with_record(Tag.BYTES, varint(9) + b"\xff\xff\xff" + bytes(9), 9))


@hostile("archive: bytes of a mixed block")
def _() -> None:
    read_archive(with_record(Tag.MIXED, varint(1 << 30) + bytes(30), 1 << 30))


@hostile("archive: tokens' bytes of a mixed block")
def _() -> None:
    """16 bytes of tokens for each of 2^26, in 8 lanes that begin where they should."""
    missing = (1 << 26) - (1 << 30)
    head = varint(2 * (-2 * missing - 1)) + bytes(7)
    read_archive(with_record(Tag.MIXED, varint(1 << 26) + head + bytes(20), 1 << 26))


@hostile("archive: line ends of a mixed block")
def _() -> None:
    read_archive(with_record(Tag.MIXED, varint(9) + varint(1) + varint(1 << 34) + bytes(9), 9))


@cache
def bomb() -> bytes:
    """A modelled record of no tokens whose edit inserts four million bytes; it takes a few hundred."""
    from codec.text.documents import prepare
    from codec.text.open_coder import make_coder

    coder, document = make_coder(pack()), bytes(4 << 20)
    empty = prepare(b"", coder.tokenizer, True)
    (interval,) = coder.intervals([empty])
    starts, sizes = interval[:2].astype(np.int64)
    state, out = range_coder.new_encoder(), np.zeros(1 << 24, np.uint8)
    range_coder.encode_intervals(state, out, starts, sizes, coder.total_bits)
    none, original = np.zeros(0, np.uint8), np.frombuffer(document, np.uint8)
    put_edits(state, out, none, original, np.array([[0, 0, 0, len(document)]]), coder.tokenizer.lossy)
    return out[: range_coder.finish(state, out)].tobytes()


@hostile("archive: bytes that edits insert")
def _() -> None:
    read_archive(with_record(Tag.MODELLED, bomb(), 1))


@hostile("archive: length of a chunk")
def _() -> None:
    data = write_header(Header()) + varint(8 * (1 << 38)) + bytes(9)
    assert list(scan(BytesIO(data))) == []
    with tempfile.TemporaryDirectory() as folder:
        assert salvage(BytesIO(data), None, Path(folder) / "out").records == 0
    read_archive(data)


# Checkpoints and shards


def read_file(data: bytes, name: str, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        read(path)


@hostile("shard: tokens")
def _() -> None:
    read_file(struct.pack("<3i", MAGIC, 1, (1 << 31) - 1) + bytes(1012 + 8), "x.bin", read_shard)


@hostile("safetensors: bytes of the header")
def _() -> None:
    read_file(struct.pack("<Q", 1 << 62) + b"{}", "x.safetensors", load_checkpoint)


@hostile("safetensors: shape")
def _() -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    read_file(struct.pack("<Q", len(header)) + header + bytes(4), "x.safetensors", load_checkpoint)


@hostile("safetensors: offsets")
def _() -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}}).encode()
    read_file(struct.pack("<Q", len(header)) + header + bytes(4), "x.safetensors", load_checkpoint)


@hostile("safetensors: config in the metadata")
def _() -> None:
    data = save({"w": torch.zeros(1)}, {"config": json.dumps({"vocab_size": 1024, "model_dim": 64, "window": 1 << 60})})
    read_file(data, "x.safetensors", load_checkpoint)


def strided() -> bytes:
    out = BytesIO()
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, out)
    return out.getvalue()


@hostile("PyTorch file: elements of a storage")
def _() -> None:
    read_file(strided(), "pytorch_model.bin", open_weights)


@hostile("artifact of the challenge: elements of a storage")
def _() -> None:
    read_content(zstandard.ZstdCompressor().compress(strided()))


@hostile("artifact of the challenge: bytes when unpacked")
def _() -> None:
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    zeros = bytes(1 << 24)
    read_content(b"".join([*(packer.compress(zeros) for _ in range(65)), packer.flush()]))


GGUF = b"GGUF" + struct.pack("<I", 3)


@hostile("GGUF: tensors")
def _() -> None:
    read_file(GGUF + struct.pack("<QQ", 1 << 60, 0), "x.gguf", load_gguf)


@hostile("GGUF: keys")
def _() -> None:
    read_file(GGUF + struct.pack("<QQ", 0, 1 << 60), "x.gguf", load_gguf)


@hostile("GGUF: bytes of a string")
def _() -> None:
    read_file(GGUF + struct.pack("<QQQ", 0, 1, 1 << 60), "x.gguf", load_gguf)


@hostile("GGUF: entries of an array")
def _() -> None:
    read_file(GGUF + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60), "x.gguf", load_gguf)


@hostile("GGUF: dimensions of a tensor")
def _() -> None:
    read_file(GGUF + struct.pack("<QQQ", 1, 0, 1) + b"w" + struct.pack("<I", 1 << 31), "x.gguf", load_gguf)


@hostile("journal: bytes of a frame")
def _() -> None:
    def resume(path: Path) -> None:
        Journal(path, b"job", True).close()
        path.write_bytes(b"UPZX" + path.read_bytes()[4:] if path.exists() else b"UPZX")
        Journal(path, b"job", True)

    read_file(b"UPZJ" + struct.pack("<II", (1 << 32) - 1, 0) + bytes(9), "x.partial", resume)


def measured(read: Callable[[], object]) -> list[Any]:
    """Read a file in a forked process with limits: what came of it, seconds of CPU, and bytes of memory."""
    answers, answer = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        begin = time.process_time()
        try:
            read()
            found = ["none", ""]
        except BaseException as error:
            found = [",".join(kind.__name__ for kind in type(error).__mro__), str(error)[:300]]
        grown = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
        os.write(answer, json.dumps([*found, time.process_time() - begin, grown]).encode())
        os._exit(0)
    os.close(answer)
    with os.fdopen(answers, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(said) if said else [f"status {status}", "", SECONDS, 0]


def main() -> None:
    torch.set_num_threads(1)  # a fork has no other threads
    os.environ["OMP_NUM_THREADS"] = "1"
    for data in archives():
        read_archive(data)
    from codec.cm.compressor import compress, decompress
    from codec.text.solid.blocks import decode_blocks, open_blocks

    decompress(compress(b"to be or not to be"), 18)
    solid = open_blocks(pack())
    kinds = solid.encode([b"to be or not to be " * 40])
    list(decode_blocks(solid, {n: (k.kind, varint(760) + k.data, 760) for n, k in enumerate(kinds)}))
    read_pack(blob())
    bomb()
    names = sys.argv[1:] or list(FILES)
    for name in names:
        print(json.dumps({name: measured(FILES[name])}), flush=True)


if __name__ == "__main__":
    main()
