"""Run a predictor in the sandbox's process and answer requests.

`eval.audit.isolation` drops the process's rights and then becomes `python -m eval.audit.worker`. The process talks
through two pipes, in little-endian numbers. A request is a letter, a u32 number of bytes and int64 arrays. An answer is
a status byte, a u32 number of bytes and float64 arrays or UTF-8 text. The first request is JSON: the factory and the
files that are refused. The sandbox never unpickles an answer.
"""

import importlib.util
import json
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from eval.audit.isolation import FAILED, HEAD, OK

RESET, PEEK, DISTRIBUTION, UPDATE, START = b"R", b"P", b"D", b"U", b"S"

MAX_TEXT = 2000
"""The most bytes of an error message."""


def refuse(hidden: Sequence[str]) -> None:
    """Refuse sockets and the files `hidden` to Python: a second protection beside namespaces, or the only one."""
    forbidden = {os.path.realpath(path) for path in hidden}

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
            raise PermissionError("a predictor has no network")
        opened = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes)) else ""
        if opened and os.path.realpath(opened) in forbidden:
            raise PermissionError("a predictor has no access to the text it is scored on")

    sys.addaudithook(look)  # cannot be removed


def load(target: str) -> Any:
    """Return the predictor that the factory `file.py:name` in the current folder makes."""
    file, _, name = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)()


def serve(predictor: Any, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    import numpy as np

    while head := requests.read(HEAD.size):
        kind, size = HEAD.unpack(head)
        numbers = np.frombuffer(requests.read(size), "<i8")
        try:
            answer = b""
            if kind == RESET:
                predictor.reset(numbers.copy())
            elif kind == UPDATE:
                predictor.update(numbers.copy())
            elif kind == PEEK:  # the number of documents, their lengths, their tokens
                lengths = numbers[1 : 1 + numbers[0]]
                predictor.peek(np.split(numbers[1 + numbers[0] :].copy(), np.cumsum(lengths)[:-1]))
            else:
                found = np.ascontiguousarray(predictor.distribution(), "<f8")
                answer = struct.pack("<II", *found.shape) + found.tobytes()
            send(answers, OK, answer)
        except Exception as error:
            send(answers, FAILED, describe(error))


def send(answers: BinaryIO, status: bytes, content: bytes) -> None:
    answers.write(HEAD.pack(status, len(content)) + content)
    answers.flush()


def describe(error: BaseException) -> bytes:
    """Describe an error in the claim's code in one line."""
    return f"{type(error).__name__}: {error}".encode(errors="replace")[:MAX_TEXT]


def main() -> None:
    """Run `eval.audit.worker READ_FD WRITE_FD`."""
    read, write = map(int, sys.argv[1:])
    with os.fdopen(read, "rb") as requests, os.fdopen(write, "wb") as answers:
        _, size = HEAD.unpack(requests.read(HEAD.size))
        told = json.loads(requests.read(size))
        refuse(told.pop("hidden"))
        try:
            predictor = load(told.pop("factory"))
        except BaseException as error:
            send(answers, FAILED, describe(error))
            return
        send(answers, OK, json.dumps({"peeks": hasattr(predictor, "peek")}).encode())
        serve(predictor, requests, answers)


if __name__ == "__main__":
    main()
