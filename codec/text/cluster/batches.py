"""Code documents in batches of columns, as `ray.data` hands them to `map_batches`: documents to records and back.

The classes need no Ray themselves. A batch is a dictionary of arrays or lists of equal length, and columns that are not
named here pass through.

    data = ray.data.read_parquet("crawl/").map_batches(
        EncodeBatch, fn_constructor_args=("small.pack",), concurrency=4, batch_size=1024)
    data.write_parquet("records/")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from codec.errors import DocumentError, FormatError
from codec.pack.reader import Pack
from codec.pack.reader import open as open_pack
from codec.text.base import DocumentCoder
from codec.text.documents import MODELLED, STORED
from codec.text.open_coder import default_policy, open_coder
from codec.text.policy import Adaptation
from codec.text.stored import unstore

Batch = dict[str, Any]
RECORD = ("mode", "crc", "payload", "text_bytes")
"""The columns of a record: how it is coded, the CRC-32 of the original bytes, its payload, and how many bytes."""


class _Coding:
    """A coder that is opened once for many batches.

    Args:
        pack: a pack, or the path of one.
        column: name of the column with the documents: texts or bytes, coded as UTF-8 and decoded as bytes.
        device: where the model runs, as of `codec.devices.find_devices`.
        adaptation: what the model learns from a document while coding it.
    """

    def __init__(
        self,
        pack: Pack | str | Path,
        column: str = "text",
        device: str = "cpu",
        adaptation: Adaptation = Adaptation.NONE,
    ):
        self._column = column
        opened = pack if isinstance(pack, Pack) else open_pack(pack)
        self._coder: DocumentCoder = open_coder(opened, default_policy(opened, adaptation), device)


class EncodeBatch(_Coding):
    """Replace the documents of batches by records.

    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> records = EncodeBatch(pack)({"id": [7, 8], "text": ["Two documents, ", b"each alone."]})
    >>> sorted(records)
    ['crc', 'id', 'mode', 'payload', 'text_bytes']
    >>> DecodeBatch(pack)(records)["text"].tolist()
    [b'Two documents, ', b'each alone.']
    """

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Code a batch. Raises FormatError where it lacks the column, or holds what is no document."""
        documents = [_bytes(document) for document in _column(batch, self._column)]
        records = self._coder.encode(documents)
        rest = {name: values for name, values in batch.items() if name != self._column}
        return rest | {
            "mode": np.array([record.mode for record in records], np.int64),
            "crc": np.array([record.crc for record in records], np.int64),
            "payload": _objects([record.payload for record in records]),
            "text_bytes": np.array([record.text_bytes for record in records], np.int64),
        }


class DecodeBatch(_Coding):
    """Replace the records of batches by documents, as bytes."""

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Decode a batch.

        Raises:
            FormatError: the batch lacks a column of records, or a record is damaged.
            DocumentError: a document is not what was encoded.
        """
        modes, crcs, payloads, sizes = (list(_column(batch, name)) for name in RECORD)
        found = dict[int, bytes]()
        for n, mode in enumerate(modes):
            if mode == STORED:
                found[n] = unstore(payloads[n], int(sizes[n]))
            elif mode != MODELLED:
                raise FormatError(f"record {n}: mode {mode}, expected {STORED} or {MODELLED}")
        modelled = {n: bytes(payloads[n]) for n in range(len(modes)) if n not in found}
        found.update(self._coder.decode(modelled, sizes={n: int(sizes[n]) for n in modelled}))
        for n, crc in enumerate(crcs):
            if crc32(found[n]) != crc:
                raise DocumentError("its CRC-32 is wrong; the records are damaged", n, found[n])
        rest = {name: values for name, values in batch.items() if name not in RECORD}
        return rest | {self._column: _objects([found[n] for n in range(len(modes))])}


def _column(batch: Mapping[str, Any], name: str) -> Sequence[Any]:
    if name not in batch:
        raise FormatError(f"batch: it has columns {', '.join(sorted(batch))}, expected {name}; name the right one")
    return batch[name]


def _bytes(document: Any) -> bytes:
    if isinstance(document, str):
        return document.encode("utf-8", "surrogatepass")
    if isinstance(document, bytes):
        return document
    raise FormatError(f"batch: a document is a {type(document).__name__}, expected a text or bytes; leave it out first")


def _objects(values: list[bytes]) -> NDArray[Any]:
    """Return an array of bytes; numpy's own arrays of bytes would drop zeros at the ends."""
    found = np.empty(len(values), object)
    found[:] = values
    return found
