"""A coder that knows every document by heart: payloads of five bytes, at once, for tests of what is around a coder."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from codec.console import Advance, ignore_progress
from codec.errors import DocumentError
from codec.text.documents import MODELLED, Record
from codec.text.pipeline import GroupReader
from codec.text.solid.coder import BYTES, MIXED, Payload

_KNOWN: dict[bytes, bytes] = {}


class ByHeart:
    """A `codec.text.base.DocumentCoder`."""

    def start(self, advance: Advance = ignore_progress) -> None:
        """Do nothing."""

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Learn documents by heart."""
        records = []
        for document in documents:
            payload = b"\0" + crc32(document).to_bytes(4, "little")
            _KNOWN[payload] = document
            size = len(document)
            records.append(Record(MODELLED, payload, crc32(document), size, size, 1 + size // 4, 40.0, 40.0))
            advance(size)
        return records

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """See `encode`."""
        ahead = GroupReader(documents, limit)
        while group := ahead.take():
            yield group, self.encode(group, model_only, advance)
        if ahead.failure:
            raise ahead.failure

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Say what was learned."""
        for number, payload in payloads.items():
            if payload not in _KNOWN:
                raise DocumentError("never heard of", number, b"")
            yield number, _KNOWN[payload]
            advance(len(payload))


class BlocksByHeart:
    """A `codec.text.solid.coder.SolidCoder`."""

    def __init__(self, kind: int):
        self._kind = kind

    def encode(self, blocks: Sequence[bytes], advance: Advance = ignore_progress) -> list[Payload]:
        """Learn blocks by heart."""
        return [Payload(self._kind, record.payload) for record in ByHeart().encode(blocks, advance=advance)]

    def decode(
        self, blocks: Mapping[int, tuple[int, bytes, int]], advance: Advance = ignore_progress
    ) -> Iterator[tuple[int, bytes]]:
        """Say what was learned."""
        return ByHeart().decode({number: data for number, (_, data, _) in blocks.items()}, advance)


def pack_of(source: bytes | Path) -> Any:
    """What of a pack an archive wants to know."""
    blob = source if isinstance(source, bytes) else source.read_bytes()
    config, tokenizer = SimpleNamespace(window=32, restarts=False), SimpleNamespace(token_bytes=[])
    return SimpleNamespace(sha256=sha256(blob).hexdigest(), for_text=lambda: (config, tokenizer), recall=None)


BLOB = b"the bytes of a pack"
PACK = pack_of(BLOB)


@pytest.fixture
def by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let archives be coded by heart."""
    for module in ("reader", "writer", "encode_files"):
        monkeypatch.setattr(f"codec.archive.{module}.open_coder", lambda *ignored: ByHeart())
    monkeypatch.setattr(
        "codec.text.solid.blocks.open_blocks", lambda pack=None, *ignored: BlocksByHeart(MIXED if pack else BYTES)
    )
    monkeypatch.setattr("codec.archive.reader.open_pack", pack_of)
    monkeypatch.setattr("codec.open", pack_of, raising=False)
