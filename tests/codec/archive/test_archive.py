"""codec.archive.writer: any bytes in any number of documents, appended, alone, damaged, or with another pack."""

import hashlib
import struct
import tracemalloc
import zlib
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import codec
from codec.archive.format import Header, Index, Tag, read_contents, read_record, write_footer
from codec.archive.members import Kind, Member
from codec.archive.reader import ArchiveReader
from codec.archive.whole.description import describe
from codec.archive.writer import ArchiveWriter, ChunkWriter, Policy
from codec.entropy.varint import varint
from codec.errors import CodecError, FormatError, MismatchError
from codec.pack.reader import Pack
from codec.text.documents import MODELLED, STORED, Record
from codec.text.open_coder import make_coder
from codec.zstd import shrink
from tests.support.helpers import EVERY_OPTION, PLAIN, folding_pack, random_weights, tiny_pack
from trainer.data.sample import sp1024, val_documents

CONFIG = replace(PLAIN, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1)


def small_pack(seed: int) -> Pack:
    """As small as models get, and nearly uniform, so that damaged records do not decode to long texts."""
    weights = random_weights(CONFIG, seed)
    return codec.open(codec.compress({**weights, "tok_emb.weight": 0.1 * weights["tok_emb.weight"]}, CONFIG, sp1024()))


PACK = small_pack(0)

STORED_TEXT = b"A document that zstandard keeps, because the model of this pack knows nothing."
SOME = [STORED_TEXT, b"", b"\xff\x00\x80", "zwei ▁ ☃".encode(), b"word " * 80]


def written(documents: list[bytes], policy: Policy | None = None, pack: Pack = PACK) -> bytes:
    """An archive of documents that all go through the model."""
    stream = BytesIO()
    with ArchiveWriter(stream, pack, policy) as writer:
        writer.append(documents, model_only=True)
    return stream.getvalue()


def appended(archive: bytes, documents: list[bytes], pack: Pack = PACK) -> bytes:
    stream = BytesIO(archive)
    with ArchiveWriter(stream, pack, append=True) as writer:
        writer.append(documents)
    return stream.getvalue()


@settings(max_examples=10)
@given(st.lists(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), max_size=5))
@example([])
@example([b""])
@example(["▁�".encode(), b"<s>", b"\0", b"\xff"])
def test_any_documents(documents):
    assert codec.decode(PACK, codec.encode(PACK, documents)) == documents
    assert codec.decode(PACK, written(documents)) == documents


def test_every_option_of_the_model():
    pack = tiny_pack(EVERY_OPTION, lossless=True)
    documents = [*SOME, *(d[:200] for d in list(val_documents())[:3])]
    packed = written(documents, pack=pack)
    assert codec.decode(pack, packed) == documents
    assert describe(packed)["modelled"] == len(documents)


def test_folded_text():
    packed = written([*SOME, b"The NASA iPod \x10\x11\x12"], pack=folding_pack())
    assert codec.decode(folding_pack(), packed) == [*SOME, b"The NASA iPod \x10\x11\x12"]


def test_large_documents_are_stored():
    random = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
    packed = codec.encode(PACK, [random, b"\0" * 1_000_000])
    assert codec.decode(PACK, packed) == [random, b"\0" * 1_000_000]
    assert describe(packed)["stored"] == 2
    assert len(packed) < 1_001_000


def test_one_document_alone():
    packed = written(SOME)
    for number, document in enumerate(SOME):
        assert codec.decode(PACK, packed, [number]) == [document]
    assert codec.decode(PACK, packed, [4, 0, 4]) == [SOME[4], SOME[0], SOME[4]]
    assert codec.decode(PACK, packed, []) == []
    for number in (-1, 5):
        with pytest.raises(FormatError, match=f"document {number}: the archive holds documents 0 to 4"):
            codec.decode(PACK, packed, [0, number])


@pytest.mark.parametrize("size", [1, 40, 300])
def test_groups_do_not_change_what_is_decoded(monkeypatch, size):
    monkeypatch.setattr("codec.archive.reader.GROUP_BYTES", {"cpu": size})
    documents = [*SOME, *SOME[::-1]]
    reader = ArchiveReader(BytesIO(codec.encode(PACK, documents)), PACK)
    assert reader.decode() == documents
    wanted = [7, 0, 0, 9, 3, 7]
    assert list(reader.iterate(wanted)) == [documents[n] for n in wanted]


def test_documents_come_before_later_ones_are_read(monkeypatch):
    monkeypatch.setattr("codec.archive.reader.GROUP_BYTES", {"cpu": 1})
    packed = bytearray(written(SOME))
    contents = read_contents(stream := BytesIO(bytes(packed)))
    end = int(contents.offsets[3] + contents.lengths[3])
    packed[end - len(read_record(stream, contents, 3).payload) - 1] ^= 255  # of the CRC-32
    stream = ArchiveReader(BytesIO(bytes(packed)), PACK).iterate()
    assert [next(stream) for _ in range(3)] == SOME[:3]
    with pytest.raises(CodecError, match="document 3"):
        next(stream)


def forged(packed: bytes, **changes: Any) -> bytes:
    """An archive whose index says something else, with a CRC-32 that fits."""
    contents = read_contents(BytesIO(packed))
    index = Index(**{f.name: changes.get(f.name, getattr(contents, f.name)) for f in fields(Index)})
    return packed[: contents.end] + write_footer(index)


@pytest.mark.parametrize("size", [0, 1, 1999, 2001, 1 << 29])
def test_the_size_in_the_index_bounds_what_is_decoded(size):
    """A stored record before it takes memory, a modelled one before it takes more than sixteen tokens a byte."""
    for documents in ([b"word " * 400], ["\ufdfa".encode() * 400], [b"\xff\xfe" * 1000]):
        for packed in (codec.encode(PACK, documents), written(documents)):
            tracemalloc.start()
            with pytest.raises(CodecError):
                codec.decode(PACK, forged(packed, sizes=np.array([size])))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 1 << 24


def test_a_document_does_not_need_the_bytes_of_others():
    packed = bytearray(written(SOME))
    contents = read_contents(BytesIO(bytes(packed)))
    for number in (0, 1, 2, 4):
        begin, end = int(contents.offsets[number]), int(contents.offsets[number] + contents.lengths[number])
        packed[begin:end] = b"\xff" * (end - begin)
    assert codec.decode(PACK, bytes(packed), [3]) == [SOME[3]]
    with pytest.raises(CodecError):
        codec.decode(PACK, bytes(packed), [4])


def test_the_writer_says_what_it_wrote():
    stream = BytesIO()
    with ArchiveWriter(stream, PACK) as writer:
        records = [*writer.append(SOME[:2]), *writer.append(SOME[2:], model_only=True)]
    payload = sum(len(record.payload) for record in records)
    assert writer.framing_bytes + payload == len(stream.getvalue())
    assert [record.mode for record in records[1:]] == [STORED, MODELLED, MODELLED, MODELLED]
    said = describe(stream.getvalue())
    assert (said["archive_bytes"], said["documents"], said["text_bytes"]) == (
        len(stream.getvalue()),
        5,
        sum(map(len, SOME)),
    )
    assert (said["modelled"] + said["stored"], said["same"], said["pack"]) == (5, 0, PACK.sha256[:16])
    assert (said["window"], said["adaptation"], said["files"]) == (None, "none", [])


@pytest.mark.parametrize("window", [32, 20, 5, 1])
def test_the_policy_travels_with_the_archive(window):
    packed = written(SOME, Policy(window))
    assert ArchiveReader(BytesIO(packed), PACK).coder.window == window
    assert codec.decode(PACK, packed) == SOME


@pytest.mark.parametrize("window", [33, 0, -1])
def test_policies_that_do_not_fit(window):
    with pytest.raises(FormatError, match=f"window of {window} tokens: expected 1 to 32"):
        make_coder(PACK, Policy(window))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_appending(first):
    packed = codec.encode(PACK, SOME[:first])
    for document in SOME[first:]:
        longer = appended(packed, [document])
        assert longer.startswith(packed)  # nothing is rewritten
        packed = longer
    assert codec.decode(PACK, packed) == SOME
    assert codec.decode(PACK, packed, [4]) == SOME[4:]
    assert describe(packed)["documents"] == 5
    assert codec.decode(PACK, appended(packed, [])) == SOME


def test_an_append_that_breaks_off_is_told():
    packed = codec.encode(PACK, SOME[:2])
    longer = appended(packed, SOME[2:])
    for size in range(len(packed) + 1, len(longer)):
        with pytest.raises(FormatError, match=r"truncated or an append broke off|is damaged"):
            codec.decode(PACK, longer[:size])
    assert codec.decode(PACK, longer[: len(packed)]) == SOME[:2]


def test_an_error_while_writing_leaves_no_footer():
    stream = BytesIO()
    with pytest.raises(RuntimeError, match="stop"), ArchiveWriter(stream, PACK) as writer:
        writer.append(SOME[:2])
        raise RuntimeError("stop")
    with pytest.raises(FormatError, match="do not end in a footer"):
        codec.decode(PACK, stream.getvalue())


def test_another_pack_is_refused():
    other = small_pack(7)
    packed = codec.encode(PACK, SOME)
    for attempt in (lambda: codec.decode(other, packed), lambda: appended(packed, SOME, other)):
        with pytest.raises(
            MismatchError, match=f"made with pack {PACK.sha256[:16]}…, this is pack {other.sha256[:16]}"
        ):
            attempt()
    weights_only = codec.open(codec.compress(random_weights(CONFIG)))
    with pytest.raises(MismatchError, match="holds weights only"):
        codec.encode(weights_only, SOME)


def right_or_refused(packed: bytes, documents: list[bytes]) -> bool:
    """Whether an archive is refused; never does it give other bytes, or an error that is not ours."""
    try:
        assert codec.decode(PACK, packed) == documents
    except CodecError:
        return True
    return False


DAMAGED = [b"Some words.", b"\xff", "▁".encode(), b"", b"xyz"]


@pytest.mark.parametrize("model_only", [True, False])
def test_every_flipped_byte_is_found(model_only):
    packed = written(DAMAGED) if model_only else codec.encode(PACK, DAMAGED)
    for position in range(len(packed)):
        for flip in (1, 128, 255):
            broken = bytearray(packed)
            broken[position] ^= flip
            assert right_or_refused(bytes(broken), DAMAGED)


def test_flipped_bytes_of_an_appended_archive():
    """The payload of the first footer is not read any more: there alone a flipped byte may go unnoticed."""
    first = codec.encode(PACK, DAMAGED[:2])
    packed = appended(first, DAMAGED[2:])
    old_footer = range(read_contents(BytesIO(first)).end, len(first))
    for position in range(len(packed)):
        broken = bytearray(packed)
        broken[position] ^= 255
        assert right_or_refused(bytes(broken), DAMAGED) or position in old_footer


def test_every_truncation_is_found():
    packed = written(DAMAGED)
    for size in range(len(packed)):
        assert right_or_refused(packed[:size], DAMAGED)
        with pytest.raises(FormatError, match=r"^archive: "):
            describe(packed[:size])
    for extra in (b"\0", b"Z", packed):
        assert right_or_refused(packed + extra, DAMAGED)


@given(st.binary(max_size=100), st.booleans())
def test_anything_else_is_refused(data, magic):
    for packed in (data, b"UPZ" + data if magic else data + b"Z"):
        with pytest.raises(FormatError, match=r"^archive: "):
            codec.decode(PACK, packed)


def test_a_future_version_says_so():
    packed = codec.encode(PACK, SOME)
    with pytest.raises(
        FormatError, match="format version 2 with flags 0x10, this underpar reads 1; use the underpar that wrote it"
    ):
        codec.decode(PACK, packed[:3] + b"\x12" + packed[4:])


@pytest.mark.parametrize(
    "header",
    [
        b"UPZ",
        b"UPZ\x11",
        b"UPZ\x21" + bytes(8),  # recall without a model
        b"UPZ\x51" + bytes(8) + b"\0",  # a window of no tokens
        b"UPZ\x51" + bytes(8) + b"\xff" * 9,
        b"UPZ\x81" + bytes(8),
        b"upz\x01",
    ],
    ids=bytes.hex,
)
def test_headers_that_lie(header):
    packed = codec.encode(PACK, [])
    for tail in (b"", packed[4:], packed):
        with pytest.raises(FormatError, match=r"^archive: "):
            codec.decode(PACK, header + tail)


BIG = 1 << 40


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": [4, 30]},
        {"lengths": [BIG, 30]},
        {"lengths": [(1 << 63) - 1, 30]},
        {"lengths": [0, 0]},
        {"sizes": [BIG, 1]},
        {"sizes": [(1 << 63) - 1, (1 << 63) - 1]},
        {"gaps": [(0, 1)]},
        {"gaps": [(3, 1)]},
        {"gaps": [(0, BIG)]},
        {"gaps": [(0, 0)] * 1000},
        {"lengths": [20] * 1000, "sizes": [1] * 1000},
        {"members": [Member("a", size=BIG), Member("b")]},
        {"members": [Member("a", Kind.JSON_LINES, 5, documents=7)]},
        {"members": [Member("a", Kind.JSON_LINES, 5, documents=2)]},
        {"members": [Member("a", Kind.JSON_LINES, BIG, documents=BIG)]},
        {"members": [Member("a", back=1)]},
        {"members": [Member("a", more=True)]},
        {"members": [Member("a"), Member("b", back=2)]},
        {"members": [Member("a", Kind.FOLDER), Member("b", back=1)]},
        {"members": [Member("x", Kind.LINK, target="y"), Member("", size=12, more=True)]},
    ],
    ids=str,
)
def test_footers_that_lie(changes):
    packed = codec.encode(PACK, DAMAGED[:2])
    assert codec.decode(PACK, forged(packed)) == DAMAGED[:2]
    changes = {k: np.array(v, np.int64) if k in ("lengths", "sizes") else v for k, v in changes.items()}
    with pytest.raises(CodecError):
        codec.decode(PACK, forged(packed, **changes))


def test_an_index_asks_for_no_more_memory_than_its_file_has():
    bomb = shrink(bytes(1 << 29))
    chunk = varint(8 * (1 + len(bomb)) + 7) + bytes([8]) + bomb
    packed = b"UPZ\x01" + chunk + struct.pack("<I", zlib.crc32(chunk, zlib.crc32(b"UPZ\x01")))
    own = len(varint(len(packed) - 4 + 4))
    packed += varint(len(packed) - 4 + own + 1)[::-1] + b"Z"
    tracemalloc.start()
    with pytest.raises(FormatError, match="when decompressed, expected at most"):
        codec.decode(PACK, packed)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def same(back: bytes, crc: int, size: int) -> bytes:
    """An archive whose second record says that it equals the first."""
    stream = BytesIO()
    chunks = ChunkWriter(stream, Header())
    for tag, payload, sum_, count in ((Tag.STORED, b"\0abc", zlib.crc32(b"abc"), 3), (Tag.SAME, back, crc, size)):
        chunks.add(Record(tag, payload, sum_, count, count, 0, 0.0, 0.0))
    chunks.close([])
    return stream.getvalue()


def test_equal_records():
    crc = zlib.crc32(b"abc")
    assert codec.decode(PACK, same(b"\x01", crc, 3)) == [b"abc", b"abc"]
    with pytest.raises(FormatError, match="6 bytes when restored, expected at most 5"):
        ArchiveReader(BytesIO(same(b"\x01", crc, 3)), PACK, most_bytes=5)
    for lie in (
        (b"\x01", crc + 1, 3),
        (b"\x01", crc, 4),
        (b"\0", crc, 3),
        (b"\2", crc, 3),
        (b"", crc, 3),
        (b"\1\0", crc, 3),
    ):
        with pytest.raises(FormatError):
            codec.decode(PACK, same(*lie))


def test_records_that_lie():
    """A length far beyond the file asks for no memory."""
    packed = bytearray(codec.encode(PACK, DAMAGED))
    begin = int(read_contents(BytesIO(bytes(packed))).offsets[0])
    for head in (b"\xff\xff\xff\xff\x7f", b"\xff" * 7, b"\xf8\xff\xff\xff\x0f"):
        broken = packed.copy()
        broken[begin : begin + len(head)] = head
        with pytest.raises(FormatError, match=f"offset {begin}"):
            codec.decode(PACK, bytes(broken), [0])


def test_framing_is_small():
    documents = [document[:150] for document in list(val_documents())[:100]]
    stream = BytesIO()
    with ArchiveWriter(stream, PACK) as writer:
        writer.append(documents, model_only=True)
    assert len(documents) == 100
    assert writer.framing_bytes <= 12 + 20 + 9 * len(documents)


def test_golden_bytes():
    """Everything of an archive without a model, byte by byte; digests of those that need one."""
    stream = BytesIO()
    chunks = ChunkWriter(stream, Header())
    chunks.add(Record(Tag.STORED, b"\0abc", zlib.crc32(b"abc"), 3, 3, 0, 0.0, 0.0))
    chunks.close([Member("a", size=3, mode=0o644, mtime=1)])
    head, record, footer = (
        b"UPZ\x01",
        b"\x20" + bytes.fromhex("c2412435") + b"\0abc",
        b"\x03\x34\x01a" + b"\1" + bytes(7),
    )
    footer = bytes([8 * (len(footer) + 1) + 7, 3]) + footer
    crc = struct.pack("<I", zlib.crc32(head + footer))
    assert stream.getvalue() == head + record + footer + crc + bytes([len(footer) + 6]) + b"Z"
    digests = [hashlib.sha256(packed).hexdigest()[:16] for packed in (codec.encode(PACK, SOME), written(SOME))]
    assert digests == GOLDEN


GOLDEN = ["58e5afd46cf49b1f", "ef085458662ea992"]
