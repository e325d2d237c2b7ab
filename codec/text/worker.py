"""A process of `codec.text.workers`, run as `python -m codec.text.worker FD`: it codes what it is sent on a device of
its own.

Through the connection come the pack and how to use it, then requests: to get ready, to encode or to decode documents.
Answers go back one by one, each behind its kind, "done" behind the last; an error takes the place of the rest.
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
    """An `Advance` that is told on now and then."""

    def __init__(self, send: Callable[[tuple[str, Any]], None]):
        self._send, self._amount, self._told = send, 0.0, time.monotonic()

    def __call__(self, amount: float) -> None:
        self._amount += amount
        if time.monotonic() - self._told > _TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell what has not been told."""
        self._send(("advance", self._amount))
        self._amount, self._told = 0.0, time.monotonic()


def _listen(connection: Connection, requests: "SimpleQueue[bytes]") -> None:
    """Take requests until whoever sends them is gone; then nobody waits for what this process is at."""
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
    """Answer all requests; does not return."""

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
