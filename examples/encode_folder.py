"""Code the text files of a folder with a language model, read one of them back, and compare sizes.

python examples/encode_folder.py [FOLDER]; `underpar encode FOLDER -o F.upz` does the same for any files and large ones.
"""

import io
import lzma
import sys
from pathlib import Path

import artifacts
import codec

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
texts = [path.read_bytes() for path in files]

pack = artifacts.open("small")  # the pack that ships
stream = io.BytesIO()
with codec.ArchiveWriter(stream, pack) as writer:
    records = writer.append(texts)

for path, record in zip(files, records, strict=True):
    print(f"{path.relative_to(folder)}: {record.text_bytes:,} -> {len(record.payload):,} bytes")
print(f"archive: {len(stream.getvalue()):,} bytes; xz, file by file: {sum(len(lzma.compress(t)) for t in texts):,}")

assert codec.ArchiveReader(stream, pack).decode([len(files) - 1]) == texts[-1:]  # one alone, to the byte
