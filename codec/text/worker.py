"""Run a process of `codec.text.workers`, started as `python -m codec.text.worker FD`: code documents on one device.

Through the connection come first the pack and how to use it, then requests: to get ready, to encode documents, or to
decode them. Each answer goes back as (kind, content), and "done" follows the last answer of a request. An error takes
the place of the answers that are left.
"""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from codec import console
from codec.errors import CodecError
from codec.text.coder import Coder
from codec.text.open_coder import make_coder

_TELL_SECONDS = 0.1  # between two words of progress


class _Progress:
    """An `Advance` that sends progress on from time to time, not at every call."""

    def __init__(self, send: Callable[[tuple[str, Any]], None]):
        self._send, self._amount, self._told = send, 0.0, time.monotonic()

    def __call__(self, amount: float) -> None:
        self._amount += amount
        if time.monotonic() - self._told > _TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the progress that has not been sent."""
        self._send(("advance", self._amount))
        self._amount, self._told = 0.0, time.monotonic()


def _listen(connection: Connection, requests: "SimpleQueue[bytes]") -> None:
    """Queue requests until the connection closes; then end the process, since nobody waits for its answers."""
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _answer(coder: Coder, request: tuple[Any, ...], send: Callable[[tuple[str, Any]], None]) -> None:
    advance = _Progress(send)
    kind, documents, option = request
    if kind == "start":
        coder.start(advance)
    elif kind == "encode":
        send(("answer", coder.encode(documents, option, advance)))
    else:
        for document in coder.decode(documents, advance, option):
            send(("answer", document))
    advance.flush()


def serve(connection: Connection) -> None:
    """Answer requests until the connection closes; never return."""

    def send(answer: tuple[str, Any]) -> None:
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)  # as `_listen` does

    requests: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(connection, requests), daemon=True).start()
    coder = None
    while True:
        request = pickle.loads(requests.get())
        try:
            if coder is None:
                pack, policy, device, threads, speaks = request
                console.notes.quiet = not speaks  # all would say the same
                os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch and by what stands in for it
                coder = make_coder(pack, policy, device, threads)
            else:
                _answer(coder, request, send)
        except CodecError as error:
            send(("error", error))
        except Exception as error:
            summary = f"{type(error).__name__}: {error}"
            send(("failed", (summary, traceback.format_exc())))
        else:
            send(("done", None))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
