"""What a device's name stands for, and the processors that share the work beside it."""

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


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be to pin a process to one GPU: an entry for each."""
    import torch  # which a processor codes without

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]


def find_devices(name: str) -> list[str]:
    """The devices of a name, each "cpu" or "cuda:N".

    Args:
        name: cpu, cuda for all GPUs, cuda:N for one of them counted from 0, or several of these with commas.

    Raises:
        CodecError: it is none of these, or this machine has no such GPU.
    """
    parts = name.split(",")
    gpus = [] if set(parts) == {"cpu"} else [f"cuda:{n}" for n in range(len(visible_gpus()))]
    known = {"cpu": ["cpu"], "cuda": gpus, **{gpu: [gpu] for gpu in gpus}}
    found = [known.get(part, []) for part in parts]
    if not all(found):
        raise CodecError(
            f"device {name!r}: expected cpu, or cuda or cuda:N on a machine that has such a GPU, "
            "or several of these with commas between them"
        )
    return list(chain.from_iterable(found))


def kind_of(device: str) -> str:
    """cpu or cuda."""
    return device.partition(":")[0]


def group_bytes(sizes: Mapping[str, int], name: str) -> int:
    """Bytes of documents for all the devices of a name together; `sizes` has those of one by its kind, cpu or cuda."""
    return sum(sizes[kind_of(device)] for device in find_devices(name))


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_threads() -> int:
    """How many threads work on a model on a processor: as many as torch is set to use, where it is loaded.

    Elsewhere $OMP_NUM_THREADS says, as it would to torch, or else there is one for each processor.
    """
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(stated) if stated.isdecimal() and int(stated) else processors()


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for a block; where it fails or is interrupted, what they have not begun is left undone."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def threaded(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Results of the jobs, in their order, on `compute_threads` threads."""
    threads = compute_threads()
    if threads == 1 or len(jobs) < 2:
        return [job() for job in jobs]
    return list(_pool(threads).map(lambda job: job(), jobs))


def send(values: NDArray[Any], device: "torch.device") -> "torch.Tensor":
    """Values on a device, without waiting for what a GPU is at; on a processor the array itself, not a copy."""
    import torch

    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.numpy()[...] = values  # torch would have all its threads copy, and wait for the last of them
    return pinned.to(device, non_blocking=True)


def fetch(values: "torch.Tensor") -> Callable[[], NDArray[Any]]:
    """What waits for values on a device, but not for what a GPU is given after this call."""
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
