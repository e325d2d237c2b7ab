"""Pages of a cache: nobody shares one, everybody ends, and slots that wait for pages decode the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec.archive.writer import Policy
from codec.backends.cuda.backend import CudaBackend
from codec.backends.cuda.kv_cache import Cache, Heads, Steps
from codec.backends.cuda.page_table import Pages
from codec.text.open_coder import make_coder
from codec.text.scheduler import Decoding
from tests.codec.backends.cuda.test_backend import DEVICE
from tests.support.helpers import PLAIN, tiny_pack
from trainer.data.sample import val_documents


@given(
    slots=st.integers(1, 6),
    most=st.integers(1, 5),
    spare=st.integers(0, 12),
    needs=st.lists(st.integers(1, 9), max_size=20),
    ahead=st.integers(1, 3),
)
def test_all_slots_end(slots, most, spare, needs, ahead):
    """Documents of `needs` pages of steps on slots: those that have a page go on by one, the others wait."""
    pages, waiting = Pages(slots, most, most + spare), list(needs)
    left, at = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    for _ in range(sum(needs) + 1):
        free = [n for n in range(slots) if not left[n]][: len(waiting)]
        for n in free:
            left[n], at[n] = waiting.pop(), 0
        pages.begin(free)
        pages.reach(np.minimum(at + ahead, most))
        held = pages.table[pages.table > 0]
        assert len(set(held.tolist())) == held.size <= most + spare
        assert held.size == 0 or held.max() <= most + spare
        goes = (left > 0) & (pages.table[np.arange(slots), at % most] > 0)
        assert goes.any() or not left.any()
        at += goes
        left -= goes
        pages.end(np.flatnonzero(goes & (left == 0)).tolist())
    assert not waiting
    assert not left.any()
    assert not pages.table.any()


def test_kept_slots_keep_their_pages():
    pages = Pages(3, 2, 6)
    pages.begin([0, 1, 2])
    assert pages.reach(np.array([2, 1, 2]))
    assert not pages.reach(np.array([2, 1, 2]))
    before = pages.table.copy()
    pages.keep([2, 0])
    assert np.array_equal(pages.table, before[[2, 0]])
    pages.begin([1])
    assert pages.reach(np.array([2, 0]))  # the table has changed, although no page was given
    assert pages.reach(np.array([2, 2]))
    assert len(set(pages.table.flatten().tolist())) == 4


def test_places_are_in_pages():
    """The next places of slots are where the table says."""
    heads = Heads(replace(PLAIN, num_layers=1), 32, torch.device(DEVICE), page=128)
    cache = Cache(heads, 7)
    table = torch.tensor([[2, 5, 0], [1, 6, 0], [4, 3, 0]], device=DEVICE)
    positions = torch.tensor([0, 127, 191], device=DEVICE)
    steps = Steps(heads, cache, positions, table, torch.arange(3, device=DEVICE), window=192)
    assert (steps.slots.tolist(), steps.places.tolist()) == ([2, 1, 3], [0, 127, 63])
    later = Steps(heads, cache, positions + 193, table, torch.arange(3, device=DEVICE), window=192)
    assert (later.slots.tolist(), later.places.tolist()) == ([2, 6, 4], [1, 0, 0])


@pytest.mark.long
@pytest.mark.parametrize("pages", [0, 3])
def test_slots_wait_for_pages(pages):
    """Three slots whose windows take two pages each have two or three in all: pages are kept back for the first."""
    pack = tiny_pack(replace(PLAIN, window=128, num_layers=1))
    coder = make_coder(pack, Policy(128))
    documents = [d[:n] for n, d in zip((20, 2, 9), val_documents(), strict=False)]
    payloads = dict(enumerate(r.payload for r in coder.encode(documents, model_only=True)))
    backend = CudaBackend(pack.exact(DEVICE))
    backend.heads = replace(backend.heads, page=64)
    room = pages * backend.heads.page_bytes
    decoding = Decoding(backend, coder.tokenizer, payloads, 128, 3, room, threads=2)
    assert dict(decoding.documents(lambda _: None)) == dict(enumerate(documents))
