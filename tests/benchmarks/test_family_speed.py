"""A pack of an open family on a processor: opening, encoding and decoding of some documents side by side.

    FAMILY_PACK=smollm2.pack FAMILY_TEXT=documents.jsonl python -m pytest -s -m benchmark \\
        tests/benchmarks/test_family_speed.py

Prints seconds of the clock and of the processor, bytes a second without and with opening, the load, and a digest of the
payloads, by which two versions can be compared. Documents are the first 16 of 3,000 to 5,000 bytes.
"""

import hashlib
import json
import os
import time
from itertools import islice
from pathlib import Path

import pytest

import codec
from codec.text.open_coder import make_coder

pytestmark = pytest.mark.benchmark


@pytest.mark.skipif("FAMILY_PACK" not in os.environ, reason="set FAMILY_PACK to a pack, FAMILY_TEXT to JSON Lines")
def test_documents_side_by_side():
    with Path(os.environ["FAMILY_TEXT"]).open(encoding="utf-8") as lines:
        texts = (json.loads(line)["text"].encode() for line in lines)
        documents = list(islice((text for text in texts if 3000 <= len(text) <= 5000), 16))
    size, clocks = sum(map(len, documents)), [(time.perf_counter(), time.process_time())]

    def told(what: str) -> None:
        clocks.append((time.perf_counter(), time.process_time()))
        wall, processor = (b - a for a, b in zip(*clocks[-2:], strict=True))
        speed = "" if len(clocks) == 2 else f", {size / wall:.0f} bytes/s, {size / (wall + opened):.0f} with opening"
        print(f"{what}: {wall:.1f} s, {processor:.1f} of the processor{speed}; load {os.getloadavg()[0]:.1f}")

    coder, opened = make_coder(codec.open(Path(os.environ["FAMILY_PACK"]))), 0.0
    coder.start()
    told("open")
    opened = clocks[1][0] - clocks[0][0]
    records = coder.encode(documents, model_only=True)
    told("encode")
    found = dict(coder.decode({n: record.payload for n, record in enumerate(records)}))
    told("decode")
    print(hashlib.sha256(b"".join(record.payload for record in records)).hexdigest())
    assert [found[n] for n in range(len(documents))] == documents
