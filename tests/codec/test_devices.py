"""codec.devices: what names stand for, threads that keep the order, values that go there and back."""

import threading

import numpy as np
import pytest
import torch

from codec.devices import (
    device_count,
    device_here,
    fetch,
    find_devices,
    group_bytes,
    processors,
    send,
    thread_pool,
    threaded,
)
from codec.errors import CodecError


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cpu", ["cpu"]),
        ("cpu,cpu,cpu", ["cpu"] * 3),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:1,cpu", ["cuda:1", "cpu"]),
    ],
)
def test_names(gpus, name, expected):
    assert find_devices(name) == expected


@pytest.mark.parametrize("name", ["", "cpu,", "gpu", "cpu:0", "cuda:2", "cuda:-1", "cuda:", "cpu cpu"])
def test_other_names_are_refused(gpus, name):
    with pytest.raises(CodecError, match="expected cpu, or cuda"):
        find_devices(name)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cpu,cuda"):
        with pytest.raises(CodecError, match="has such a GPU"):
            find_devices(name)


def test_groups_grow_with_the_devices(gpus):
    sizes = {"cpu": 10, "cuda": 1000}
    assert [group_bytes(sizes, name) for name in ("cpu", "cpu,cpu", "cuda", "cuda:0,cpu")] == [10, 20, 2000, 1010]


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, ValueError])
def test_what_ends_a_pool_leaves_undone_what_no_thread_has_begun(error):
    """An error waits for the job that a thread is at; an interrupt does not."""
    begun, gate, done = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        gate.wait(60)
        done.append(0)

    with pytest.raises(error), thread_pool(1) as pool:
        queued = [pool.submit(first), *(pool.submit(done.append, n) for n in range(1, 4))]
        begun.wait(60)
        if error is ValueError:
            queued[-1].add_done_callback(lambda future: gate.set())
        raise error
    assert done == ([0] if error is ValueError else [])
    gate.set()
    queued[0].result()
    assert done == [0]
    assert [future.cancelled() for future in queued] == [False, True, True, True]


def test_threads_keep_the_order(monkeypatch):
    """Each job waits for the next one, so that they end in the reverse order, and all at a time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    ended = [threading.Event() for _ in range(5)]
    ended[-1].set()

    def job(n: int) -> int:
        assert ended[min(n + 1, 4)].wait(60)
        ended[n].set()
        return n

    assert threaded([lambda n=n: job(n) for n in range(5)]) == list(range(5))
    assert threaded([]) == []
    assert processors() >= 1


@pytest.mark.gpu
def test_values_are_fetched_as_they_were():
    """What a GPU is given after the call does not change them, nor what the host's memory is used for next."""
    device, size = torch.device("cuda"), 1 << 22
    waits = []
    for n in range(8):
        there = send(np.full(size, n), device)
        waits.append(fetch(there))
        there.fill_(-1)
    for n, wait in enumerate(waits):
        assert (wait() == n).all()


def test_values_go_there_and_back():
    values = np.arange(6.0).reshape(2, 3)
    there = send(values, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert np.array_equal(fetch(there + 1)(), values + 1)


def test_devices_of_a_cluster(gpus):
    """They are not counted here, and what is not shared out runs on this machine's processor."""
    assert find_devices("cuda@10.0.0.1:6379") == ["cuda"] and find_devices("cpu,cpu@local") == ["cpu", "cpu"]
    assert group_bytes({"cpu": 10, "cuda": 1000}, "cpu,cpu@local") == 10  # a group is a task of one actor
    assert [device_count(name) for name in ("cpu", "cuda", "cuda@auto")] == [1, 2, 8]
    assert [device_here(name) for name in ("cpu", "cuda", "cuda@auto")] == ["cpu", "cuda:0", "cpu"]
    for name in ("cpu@", "cuda:1@auto", "gpu@auto", "@auto"):
        with pytest.raises(CodecError, match="then @ and an address"):
            find_devices(name)
