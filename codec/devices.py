"""Resolve device names, run jobs on threads of the processor, and copy arrays between host and device."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from codec.errors import CodecError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_CLUSTER = 8
"""Devices that a cluster is taken to have where text is read or decoded for all of them together."""


def visible_gpus() -> list[str]:
    """List the values of CUDA_VISIBLE_DEVICES that pin a process to one GPU: an entry for each GPU."""
    import torch  # imported here, because coding on a processor needs no torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]


def find_devices(name: str) -> list[str]:
    """List the devices that a name stands for, each "cpu" or "cuda:N".

    Args:
        name: cpu, cuda for all GPUs, cuda:N for GPU N counted from 0, or several of these with commas. With @ and the
            address of a Ray cluster behind it, cpu and cuda are those of the cluster, which are not counted here.

    Raises:
        CodecError: the name is of another form, or this machine has no such GPU.
    """
    names, address = split_cluster(name)
    parts = names.split(",")
    if address is not None:
        if not address or not set(parts) <= {"cpu", "cuda"}:
            raise CodecError(f"device {name!r}: expected cpu or cuda, or several with commas, then @ and an address")
        return parts
    gpus = [] if set(parts) == {"cpu"} else [f"cuda:{n}" for n in range(len(visible_gpus()))]
    known = {"cpu": ["cpu"], "cuda": gpus, **{gpu: [gpu] for gpu in gpus}}
    found = [known.get(part, []) for part in parts]
    if not all(found):
        raise CodecError(
            f"device {name!r}: expected cpu, or cuda or cuda:N on a machine that has such a GPU, "
            "or several of these with commas between them"
        )
    return list(chain.from_iterable(found))


def split_cluster(name: str) -> tuple[str, str | None]:
    """Split a name into devices and the address of the Ray cluster that has them, None for this machine.

    >>> split_cluster("cuda@10.0.0.1:6379"), split_cluster("cpu")
    (('cuda', '10.0.0.1:6379'), ('cpu', None))
    """
    devices, at, address = name.partition("@")
    return devices, address if at else None


def device_here(name: str) -> str:
    """Return the device of this process for what is not shared out: the first of a name, or cpu beside a cluster."""
    return "cpu" if split_cluster(name)[1] is not None else find_devices(name)[0]


def device_count(name: str) -> int:
    """Count the devices of a name; a cluster, which is not asked, has _CLUSTER."""
    return len(find_devices(name)) if split_cluster(name)[1] is None else _CLUSTER


def kind_of(device: str) -> str:
    """Return the kind of a device: cpu or cuda."""
    return device.partition(":")[0]


def group_bytes(sizes: Mapping[str, int], name: str) -> int:
    """Sum the bytes of documents that all devices of a name code together; of a cluster, those of one device.

    Args:
        sizes: bytes of documents for one device, by its kind (cpu or cuda).
        name: as for `find_devices`.
    """
    devices = find_devices(name)
    if split_cluster(name)[1] is not None:
        devices = devices[:1]
    return sum(sizes[kind_of(device)] for device in devices)


def processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_threads() -> int:
    """Count the threads that run a model on a processor.

    Where torch is loaded, the number is torch's setting. Otherwise the number is $OMP_NUM_THREADS, which torch would
    follow too, and without that variable the number of processors.
    """
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(stated) if stated.isdecimal() and int(stated) else processors()


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads for a block.

    An error in the block cancels the jobs that have not begun, and waits for the others. An interrupt does not wait: a
    job may take half a minute.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def threaded(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run jobs on `compute_threads` threads and return their results in the order of the jobs."""
    threads = compute_threads()
    if threads == 1 or len(jobs) < 2:
        return [job() for job in jobs]
    return list(_pool(threads).map(lambda job: job(), jobs))


def send(values: NDArray[Any], device: "torch.device") -> "torch.Tensor":
    """Copy values to a device, without waiting for work that a GPU has queued; a processor gets the array itself."""
    import torch

    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.numpy()[...] = values  # by numpy: torch would start all its threads for the copy and wait for the last
    return pinned.to(device, non_blocking=True)


def fetch(values: "torch.Tensor") -> Callable[[], NDArray[Any]]:
    """Start copying values to the host; return a function that waits for the copy only, not for work queued later."""
    if values.device.type != "cuda":
        found = values.numpy().copy()
        return lambda: found
    import torch

    here, copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True), torch.cuda.Event()
    here.copy_(values, non_blocking=True)
    copied.record()

    def wait() -> NDArray[Any]:
        copied.synchronize()
        return here.numpy()

    return wait
