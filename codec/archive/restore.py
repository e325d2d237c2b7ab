"""Decode for a proof, in a process of its own: `python -m codec.archive.restore PACK ARCHIVE OUTPUT [DEVICE]`.

The process is given a pack and an archive and nothing else. It writes the documents one after the other to OUTPUT, and
prints one JSON object: the length of each document, the seconds, and the bytes of source that were imported.
"""

import json
import sys
import time
from pathlib import Path

import codec
from codec.console import fail, progress
from codec.errors import DocumentError


def restore(pack: Path, archive: Path, output: Path, device: str) -> dict[str, object]:
    """Decode a whole archive into `output`; where a document fails, write only what that document decoded to.

    Then `failed` of the result is the document's number.

    Raises:
        CodecError: the archive or the pack is damaged.
    """
    begin = time.perf_counter()
    failed = None
    with archive.open("rb") as stream, progress("decoding", archive.stat().st_size, "byte") as advance:
        reader = codec.ArchiveReader(stream, codec.open(pack.read_bytes()), device)
        try:
            documents = reader.decode(advance=advance)
        except DocumentError as error:
            documents, failed = [error.decoded], error.document
    seconds = time.perf_counter() - begin
    output.write_bytes(b"".join(documents))
    ours = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "codec"]
    source = sum(Path(file).stat().st_size for file in ours if file) + Path(__file__).stat().st_size
    lengths = [len(document) for document in documents]
    return {"lengths": lengths, "failed": failed, "seconds": seconds, "code_bytes": source}


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:4]]
    try:
        print(json.dumps(restore(paths[0], paths[1], paths[2], *(sys.argv[4:] or ["cpu"]))))
    except codec.CodecError as error:
        fail(str(error), 2)
