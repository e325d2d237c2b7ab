"""Connect to a Ray cluster, or start one on this machine. Nothing else in this folder imports Ray."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from codec.devices import processors
from codec.errors import CodecError
from codec.processes import child_environment

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with its coder."""

_ANSWER_SECONDS = 10.0  # in which a head node answers at its port


def import_ray() -> Any:
    """Return the package. Raises CodecError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise CodecError(f"Ray is not installed here ({error}); pip install 'underpar[ray]'") from error
    return ray


def connect(address: str, workers: int) -> Callable[[], None]:
    """Connect this process to a cluster, unless it is connected already; return a function that ends the connection.

    Args:
        address: HOST:PORT of a head node, ray://HOST:PORT, auto for the cluster that this machine belongs to, or LOCAL.
        workers: the fewest processors of a cluster that is started here.

    Raises:
        CodecError: Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        return lambda: None
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"num_cpus": max(processors(), workers), "include_dashboard": False}
    elif address != "auto":
        _check_answer(address)
    before = os.environ.copy()
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]  # what a cluster that starts here imports from
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, str(error)) from error
    finally:
        os.environ.clear()
        os.environ.update(before)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # in whose place Ray has put its own
    return ray.shutdown


def _check_answer(address: str) -> None:
    """Raise CodecError where nothing listens at an address, which Ray takes a minute to notice."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise CodecError(f"Ray cluster {address!r}: expected HOST:PORT, ray://HOST:PORT, auto or {LOCAL}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> CodecError:
    first = why.strip().partition("\n")[0]
    return CodecError(f"Ray cluster {address!r}: no answer ({first}); `ray status` says whether it is up")
