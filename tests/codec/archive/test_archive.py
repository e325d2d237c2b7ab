"""codec.archive.writer: any bytes in any number of documents, appended, alone, damaged, or with another pack."""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import codec
from codec.archive.format import VERSION
from codec.archive.reader import ArchiveReader, describe
from codec.archive.writer import ArchiveWriter, Policy
from codec.errors import CodecError, FormatError, MismatchError
from codec.pack.reader import Pack
from codec.text.documents import MODELLED, STORED
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


def written(
    documents: list[bytes], policy: Policy | None = None, pack: Pack = PACK, metadata: dict[str, Any] | None = None
) -> bytes:
    """An archive of documents that all go through the model."""
    stream = BytesIO()
    with ArchiveWriter(stream, pack, policy) as writer:
        writer.metadata = metadata or {}
        writer.append(documents, model_only=True)
    return stream.getvalue()


def appended(archive: bytes, documents: list[bytes], pack: Pack = PACK) -> bytes:
    stream = BytesIO(archive)
    with ArchiveWriter(stream, pack, append=True) as writer:
        writer.append(documents)
    return stream.getvalue()


@settings(max_examples=20)
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
    begin = ArchiveReader(BytesIO(bytes(packed)), PACK).offsets[3]
    packed[begin + 1] ^= 255  # the CRC-32
    stream = ArchiveReader(BytesIO(bytes(packed)), PACK).iterate()
    assert [next(stream) for _ in range(3)] == SOME[:3]
    with pytest.raises(CodecError, match="document 3"):
        next(stream)


def test_a_record_beyond_the_longest_document_is_given_up():
    """A stored one before it takes memory, a modelled one before it takes more than sixteen tokens a byte."""
    text = b"word " * 400
    for model_only, message in ((False, "claims 2000 bytes, expected at most 1"), (True, "goes on after token")):
        stream = BytesIO()
        with ArchiveWriter(stream, PACK) as writer:
            writer.append([text], model_only)
            writer._longest = 1
        with pytest.raises(CodecError, match=message):
            codec.decode(PACK, stream.getvalue())


def test_a_document_does_not_need_the_bytes_of_others():
    packed = bytearray(written(SOME))
    reader = ArchiveReader(BytesIO(bytes(packed)), PACK)
    for number in (0, 1, 2, 4):
        begin, end = reader.offsets[number], [*reader.offsets, 0][number + 1] or reader.offsets[number] + 4
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
    assert said == {
        "archive_bytes": len(stream.getvalue()),
        "documents": 5,
        "modelled": 4 - (records[0].mode == STORED),
        "stored": 1 + (records[0].mode == STORED),
        "pack": PACK.sha256,
        "window": 32,
        "adaptation": "none",
        "metadata": {},
    }


def test_metadata_comes_back():
    metadata = {"kind": "jsonl", "name": "é ☃", "list": [1, None, {"a": 2.5}]}
    packed = written([b"a"], metadata=metadata)
    assert ArchiveReader(BytesIO(packed), PACK).metadata == metadata
    more = appended(packed, [b"b"])
    assert ArchiveReader(BytesIO(more), PACK).metadata == metadata


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
    old_footer = range(ArchiveReader(BytesIO(first), PACK).offsets[-1], len(first))
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
    for extra in (b"\0", b"UPTE", packed):
        assert right_or_refused(packed + extra, DAMAGED)


@given(st.binary(max_size=100), st.booleans())
def test_anything_else_is_refused(data, magic):
    for packed in (data, b"UPTX" + data if magic else data + b"UPTE"):
        with pytest.raises(FormatError, match=r"^archive: "):
            codec.decode(PACK, packed)


def test_a_future_version_says_so():
    packed = codec.encode(PACK, SOME)
    with pytest.raises(FormatError, match="format version 3, this underpar reads 2; use the underpar that wrote it"):
        codec.decode(PACK, packed[:4] + b"\x03\x00" + packed[6:])


HEADER = {"pack": PACK.sha256, "window": 32, "adaptation": "none"}


def with_header(change: Callable[[dict[str, Any]], Any] | bytes) -> bytes:
    """An archive without documents whose header says something else, with a CRC-32 that fits."""
    if isinstance(change, bytes):
        text = change
    else:
        header = {**HEADER}
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
    head = struct.pack("<4sHI", b"UPTX", VERSION, len(text)) + text
    packed = codec.encode(PACK, [])
    footer = packed[10 + int.from_bytes(packed[6:10], "little") + 4 :]
    return head + struct.pack("<I", zlib.crc32(head)) + footer


def test_headers_that_lie():
    assert codec.decode(PACK, with_header(lambda header: None)) == []
    lies: list[Callable[[dict[str, Any]], Any] | bytes] = [
        lambda header: [],
        lambda header: header.pop("pack") and None,
        lambda header: header.pop("window") and None,
        lambda header: header.pop("adaptation") and None,
        lambda header: header.update(adaptation="memory"),
        lambda header: header.update(adaptation=["none"]),
        lambda header: header.update(adaptation="recall"),
        lambda header: header.update(pack=3),
        lambda header: header.update(window="32"),
        lambda header: header.update(window=True),
        lambda header: header.update(window=1 << 40),
        lambda header: header.update(window=0),
        lambda header: header.update(window=33),
        lambda header: header.update(window=None),
        lambda header: header.update(policy="document", stride=16),
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"9" * 10_000,
    ]
    for lie in lies:
        with pytest.raises(CodecError):
            codec.decode(PACK, with_header(lie))


def with_footer(text: bytes, compress: bool = True) -> bytes:
    """An archive of two documents whose footer says something else, with a CRC-32 that fits."""
    packed = codec.encode(PACK, DAMAGED[:2])
    body = packed[: ArchiveReader(BytesIO(packed), PACK).offsets[-1] + 100]
    body = body[: len(packed) - struct.unpack("<I", packed[-8:-4])[0]]
    payload = shrink(text) if compress else text
    value, chunk = 4 * len(payload) + 2, bytearray()
    while value > 127:
        chunk.append(value & 127 | 128)
        value >>= 7
    chunk = chunk + bytes([value]) + payload
    return body + chunk + struct.pack("<II4s", zlib.crc32(payload), len(chunk) + 12, b"UPTE")


def test_footers_that_lie():
    packed = codec.encode(PACK, DAMAGED[:2])
    first, second = ArchiveReader(BytesIO(packed), PACK).offsets

    def index(*offsets: Any, longest: Any = 11, metadata: Any = None) -> bytes:
        return json.dumps({"offsets": offsets, "longest": longest, "metadata": metadata or {}}).encode()

    assert codec.decode(PACK, with_footer(index(first, second - first))) == DAMAGED[:2]
    lies = [
        index(1, second - first),
        index(first + 1, second - first),
        index(first, second - first + 1),
        index(first, second - first, 2),
        index(first, 1 << 40),
        index(first, 10**400),
        index(first, 0),
        index(-first),
        index(float(first)),
        index(True),
        index("1"),
        index(),
        index(second),
        index(first, metadata=[1]),
        index(first, longest=-1),
        index(first, longest=True),
        index(first, longest=1 << 31),
        index(first, longest="11"),
        b'{"offsets": 5, "longest": 1, "metadata": {}}',
        b'{"offsets": null, "longest": 1, "metadata": {}}',
        b'{"offsets": {"5": 1}, "longest": 1, "metadata": {}}',
        b'{"offsets": [], "metadata": {}}',
        b'{"longest": 1, "metadata": {}}',
        b'{"offsets": [], "longest": 1}',
        b"[]",
        b"null",
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"offsets": [1e999], "longest": 1, "metadata": {}}',
    ]
    for lie in lies:
        with pytest.raises(CodecError):
            codec.decode(PACK, with_footer(lie))
    for junk in (b"", b"junk", shrink(bytes(1 << 29))[:-2]):
        with pytest.raises(CodecError):
            codec.decode(PACK, with_footer(junk, compress=False))


def test_records_that_lie():
    """A length far beyond the file asks for no memory."""
    packed = bytearray(codec.encode(PACK, DAMAGED))
    begin = ArchiveReader(BytesIO(bytes(packed)), PACK).offsets[0]
    for head in (b"\xff\xff\xff\xff\x7f", b"\xff" * 7, b"\xfc\xff\xff\xff\x0f"):
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
    header = 147  # once, with the pack's digest in hexadecimal
    assert writer.framing_bytes <= header + 8.5 * len(documents)


def test_golden_frames():
    """Everything but the payloads, byte by byte."""

    def packed_of(documents: list[bytes]) -> bytes:
        stream = BytesIO()
        with ArchiveWriter(stream, PACK, Policy(32)) as writer:
            writer.append(documents)
        return stream.getvalue()

    packed = packed_of([b"", b"\xff"])
    text = json.dumps(HEADER).encode()
    head = b"UPTX\x02\x00" + struct.pack("<I", len(text)) + text
    head += struct.pack("<I", zlib.crc32(head))
    first = b"\x00" + bytes(4)
    assert packed.startswith(head + first)
    payload = packed_of([b"\xff"])[len(head) :]
    second = payload[: 5 + (payload[0] >> 2)]
    assert second[1:5] == struct.pack("<I", zlib.crc32(b"\xff"))
    index = shrink(f'{{"offsets":[{len(head)},5],"longest":1,"metadata":{{}}}}'.encode())
    footer = bytes([4 * len(index) % 128 + 2 | 128, 4 * len(index) >> 7]) + index
    trailer = struct.pack("<II", zlib.crc32(index), len(footer) + 12) + b"UPTE"
    assert packed == head + first + second + footer + trailer
