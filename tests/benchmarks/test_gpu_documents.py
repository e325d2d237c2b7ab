"""How fast a GPU codes documents from end to end, and which kernels take the time.

    DOCUMENTS=web.jsonl PACK=record.pack THREADS=6,10 python3 -m pytest -s -m benchmark \\
        tests/benchmarks/test_gpu_documents.py

Each document is coded on its own, by the model alone. The first eighth of the documents is encoded before the clock
starts, and again under the profiler. Without PACK the record pack that ships is taken; THREADS prepare the text.
"""

import json
import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import codec
from codec.text.coder import Coder
from codec.text.documents import Record
from codec.text.open_coder import make_coder

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark]

GROUP = 1 << 26  # bytes, as the writer of archives takes them


def encode(coder: Coder, documents: list[bytes]) -> list[Record]:
    return [record for _, records in coder.encode_groups(iter(documents), GROUP) for record in records]


def kernels(coder: Coder, documents: list[bytes]) -> None:
    """Print each kernel's share of all kernels' time, and the time of all for a token."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        tokens = sum(record.tokens for record in encode(coder, documents))
        torch.cuda.synchronize()
    taken = sorted(found.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    whole = sum(kernel.self_device_time_total for kernel in taken)
    print(f"{whole / tokens:.3f} microseconds of kernels a token")
    for kernel in taken[:10]:
        share = kernel.self_device_time_total / whole
        print(f"{share:6.1%}  {kernel.self_device_time_total / tokens:.3f}  {kernel.key[:70]}")


def test_documents():
    if "DOCUMENTS" not in os.environ:
        pytest.skip("DOCUMENTS names no file of JSON Lines")
    with Path(os.environ["DOCUMENTS"]).open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"].encode() for line in lines]
    pack = codec.open(Path(os.environ.get("PACK", "artifacts/models/record.pack")).read_bytes())
    coder, some = make_coder(pack, device="cuda"), documents[: len(documents) // 8]
    threads = [int(n) for n in os.environ.get("THREADS", str(coder.threads)).split(",")]
    coder.start()
    encode(coder, some)
    for count in threads:
        begin, processor = time.perf_counter(), time.process_time()
        records = encode(replace(coder, threads=count), documents)
        taken, tokens = time.perf_counter() - begin, sum(record.tokens for record in records)
        print(f"\n{tokens:,} tokens by {count} threads in {taken:.2f} s, {tokens / taken:,.0f} a second")
        print(f"    {time.process_time() - processor:.1f} s of processors")
    payloads = {n: record.payload for n, record in enumerate(records) if record.tokens}
    dict(islice(coder.decode(dict(islice(payloads.items(), 2000))), 1))
    begin = time.perf_counter()
    assert all(documents[n] == text for n, text in coder.decode(payloads))
    taken = time.perf_counter() - begin
    print(f"decoded in {taken:.2f} s, {tokens / taken:,.0f} tokens a second")
    kernels(coder, some)
