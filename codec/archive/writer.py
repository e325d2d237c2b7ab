"""Write archives (`.upz`) document by document."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, BinaryIO

from codec.archive.format import (
    write_chunk,
    write_footer,
    write_header,
)
from codec.archive.reader import ArchiveReader
from codec.console import Advance, ignore_progress
from codec.pack.reader import Pack
from codec.text.documents import Record
from codec.text.open_coder import default_policy, open_coder
from codec.text.policy import Adaptation, Policy


class ArchiveWriter:
    """Writes an archive to a stream.

    Args:
        stream: open for binary writing; for `append` also readable and seekable.
        pack: the opened pack that provides the probabilities.
        policy: context policy of a new archive.
        device: where the model runs, as of `codec.devices.find_devices`; the bytes do not depend on it.
        append: the stream holds an archive to which documents are added.

    Raises:
        MismatchError: the archive to append to was made with another pack.
        FormatError: it is damaged.

    An archive is complete when `close` has written its footer; leaving a `with` block closes it unless by an error.

    >>> import io
    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> stream = io.BytesIO()
    >>> with codec.ArchiveWriter(stream, pack) as writer:
    ...     records = writer.append([b"The first document.", b""])
    >>> [record.text_bytes for record in records]
    [19, 0]
    >>> with codec.ArchiveWriter(stream, pack, append=True) as writer:
    ...     records = writer.append([b"One more."])
    """

    def __init__(
        self, stream: BinaryIO, pack: Pack, policy: Policy | None = None, device: str = "cpu", append: bool = False
    ):
        self._stream = stream
        self._offsets: list[int] = []
        self._longest = 0
        self.metadata: dict[str, Any] = {}
        self.framing_bytes = 0
        if append:
            reader = ArchiveReader(stream, pack, device)
            self.coder, self._offsets, self.metadata = reader.coder, reader.offsets, reader.metadata
            self._longest = reader.longest
            self._position = stream.seek(0, 2)
            return
        policy = policy or default_policy(pack)
        self.coder = open_coder(pack, policy, device)
        self._position = 0
        self._write(write_header(pack.sha256, policy))

    def _write(self, data: bytes, payload: int = 0) -> None:
        self._stream.write(data)
        self._position += len(data)
        self.framing_bytes += len(data) - payload

    def append(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents and write them; returns what each cost. They are coded together, so give many at a time.

        Args:
            documents: any bytes, empty ones too.
            model_only: never store a document under zstandard instead.
            advance: told bytes of text.
        """
        records = self.coder.encode(documents, model_only, advance)
        for record in records:
            self._offsets.append(self._position)
            self._longest = max(self._longest, record.text_bytes)
            self._write(write_chunk(record.mode, record.crc, record.payload), len(record.payload))
        return records

    def close(self) -> None:
        """Write the footer."""
        self._write(write_footer(self._offsets, self._longest, self.metadata))
        self._stream.flush()

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()


def encode(
    model: Pack, documents: Sequence[bytes], device: str = "cpu", adaptation: Adaptation = Adaptation.NONE
) -> bytes:
    """Code documents (any bytes) with a pack; returns an archive.

    Raises:
        MismatchError: the pack holds weights only, or not what the adaptation needs.

    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> text = b"A language model is the probability source of an arithmetic coder. " * 10
    >>> len(codec.encode(pack, [text])) < len(text)
    True
    """
    stream = BytesIO()
    with ArchiveWriter(stream, model, default_policy(model, adaptation), device) as writer:
        writer.append(documents)
    return stream.getvalue()
