"""Describe an archive without decoding it."""

from io import BytesIO
from typing import Any, BinaryIO

from codec.archive.format import WITH_MODEL, Tag, read_contents, read_record
from codec.archive.members import entries
from codec.errors import damaged


def describe(archive: bytes | BinaryIO) -> dict[str, Any]:
    """Return the description of an archive that needs no pack. Raises FormatError as `ArchiveReader` does."""
    stream = BytesIO(archive) if isinstance(archive, bytes) else archive
    contents = read_contents(stream)
    with damaged():
        tags = [read_record(stream, contents, n).tag for n in range(len(contents.sizes))]
    header = contents.header
    files = [
        {"name": entry.member.name, "kind": entry.member.kind.name.lower(), "bytes": entry.size}
        for entry in entries(contents.members, contents.sizes)
    ]
    return {
        "archive_bytes": stream.seek(0, 2),
        "documents": len(tags),
        "text_bytes": int(contents.sizes.sum()),
        **{tag.name.lower(): tags.count(tag) for tag in (Tag.MODELLED, Tag.STORED, Tag.SAME, Tag.MIXED, Tag.BYTES)},
        "model_bytes": sum(int(size) for size, tag in zip(contents.sizes, tags, strict=True) if tag in WITH_MODEL),
        "pack": header.pack.hex() if header.pack else None,
        "window": header.window,
        "adaptation": header.adaptation.value,
        "files": files,
    }
