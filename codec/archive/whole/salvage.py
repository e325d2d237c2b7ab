"""Restore the undamaged files and records of a damaged archive."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from codec.archive.decode_files import decode_file
from codec.archive.format import Chunk, Tag, read_chunk, read_contents, read_header
from codec.archive.members import Kind
from codec.archive.reader import ArchiveReader
from codec.console import Advance, ignore_progress
from codec.entropy.varint import Fields
from codec.errors import CodecError, FormatError
from codec.files import new_folder
from codec.pack.reader import Pack
from codec.text.documents import MODELLED
from codec.text.stored import unstore


@dataclass
class Salvaged:
    """The finds in a damaged archive."""

    files: list[str] = field(default_factory=list)  # restored as they were
    records: int = 0  # restored under their numbers, since no index says whose they are
    text_bytes: int = 0
    lost: list[str] = field(default_factory=list)  # files and records, and why


def salvage(
    stream: BinaryIO, pack: Pack | None, output: Path, device: str = "cpu", advance: Advance = ignore_progress
) -> Salvaged:
    """Restore the undamaged files of an archive, and one by one the records behind its last undamaged index.

    Args:
        stream: the archive; must be seekable.
        pack: the pack that the archive was made with, if its records need one.
        output: a new folder. A record without a file becomes `record-000000` and so on.
        device: where the model runs, as of `codec.devices.find_devices`.
        advance: called with 1 for each file or record.

    Raises:
        FormatError: the file has not even a header.
        OutputError: the folder is there and not empty.
    """
    stream.seek(0)
    read_header(stream)
    found = Salvaged()
    with new_folder(output) as folder, tempfile.TemporaryFile() as copy:
        chunks: list[Chunk] = []  # behind the last whole index
        records = 0
        reader = None
        for _, chunk in scan(stream):
            records += chunk.tag not in (Tag.FOOTER, Tag.PACK)
            chunks.append(chunk)
            if chunk.tag == Tag.FOOTER and (opened := _open(stream, copy, pack, device)):
                reader, chunks = opened, []
        if reader:
            _files(reader, folder, found, advance)
        documents = [chunk for chunk in chunks if chunk.tag not in (Tag.FOOTER, Tag.PACK)]
        for number, chunk in enumerate(documents, records - len(documents)):
            advance(1)
            try:
                data = _record(chunk, reader, pack, device)
            except CodecError as error:
                found.lost.append(f"record {number}: {error}")
                continue
            (folder / f"record-{number:06}").write_bytes(data)
            found.records += 1
            found.text_bytes += len(data)
        _remove_empty(folder)
    return found


def _remove_empty(folder: Path) -> None:
    """Remove the folders that were made for files that could not be restored."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def scan(stream: BinaryIO) -> Iterator[tuple[int, Chunk]]:
    """Yield (offset, chunk) of every whole chunk behind the header, read without the index, as of a damaged archive."""
    stream.seek(0)
    read_header(stream)
    while True:
        offset = stream.tell()
        try:
            chunk = read_chunk(stream)
        except FormatError:
            return
        if chunk is None:
            return
        yield offset, chunk


def _open(stream: BinaryIO, copy: BinaryIO, pack: Pack | None, device: str) -> ArchiveReader | None:
    """Return a reader of the bytes before the position of `stream`; None where they do not end in an index."""
    end = stream.tell()
    copy.seek(0)
    copy.truncate()
    stream.seek(0)
    shutil.copyfileobj(stream, copy)
    copy.truncate(end)
    stream.seek(end)
    try:
        read_contents(copy)
        return ArchiveReader(copy, pack, device)
    except FormatError:
        return None


def _files(reader: ArchiveReader, folder: Path, found: Salvaged, advance: Advance) -> None:
    """Restore files, or documents where there are no files, one by one."""
    for entry in reader.entries:
        name = entry.member.name
        if entry.member.kind not in (Kind.FILE, Kind.JSON_LINES):
            continue
        if (folder / name).exists():
            found.lost.append(f"{name}: this disk takes its name for that of another file; restore to another disk")
            continue
        advance(1)
        try:
            found.text_bytes += decode_file(reader, name, 0, None, folder / name)
            found.files.append(name)
        except CodecError as error:
            found.lost.append(f"{name}: {error}")
    for number in range(len(reader)) if not reader.entries else ():
        advance(1)
        try:
            (data,) = reader.decode([number])
        except CodecError as error:
            found.lost.append(str(error))
            continue
        (folder / f"record-{number:06}").write_bytes(data)
        found.records += 1
        found.text_bytes += len(data)


def _record(chunk: Chunk, reader: ArchiveReader | None, pack: Pack | None, device: str) -> bytes:
    if chunk.tag == Tag.STORED:
        data = unstore(chunk.payload)
    elif chunk.tag == MODELLED:
        if pack is None:
            raise FormatError("it needs the model; pass the pack")
        from codec.text.open_coder import open_coder

        ((_, data),) = (reader.coder if reader else open_coder(pack, device=device)).decode({0: chunk.payload})
    elif chunk.tag == Tag.SAME:
        raise FormatError(f"it equals the record {Fields(chunk.payload, 'record').number()} before")
    else:
        from codec.text.solid.blocks import decode_blocks, open_blocks

        solid = reader.solid if reader else open_blocks(pack, device=device)
        ((_, data),) = decode_blocks(solid, {0: (chunk.tag, chunk.payload, None)})
    if crc32(data) != chunk.crc:
        raise FormatError("its CRC-32 is wrong")
    return data
