"""The other end of the sandbox: a process that gives up what it does not need, then runs a predictor.

Run as `python -m eval.audit.worker`. It talks through two pipes: a request is one letter, a u32 of bytes and int64
arrays, an answer is a status byte, a u32 of bytes and float64 arrays or UTF-8 text, all little-endian. Nothing that it
sends is ever unpickled. Only the standard library is imported before the rights are gone: namespaces need a single
thread.
"""

import ctypes
import importlib.util
import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

HEAD = struct.Struct("<cI")
OK, FAILED = b"k", b"f"
RESET, PEEK, DISTRIBUTION, UPDATE = b"R", b"P", b"D", b"U"

MAX_TEXT = 2000
"""Bytes of an error message."""

MAX_FILE = 64 << 20
"""Bytes that the predictor may write into one file."""

NAMESPACE, HOOK = "namespace", "audit hook"

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18


def isolate(memory: int, hidden: list[str]) -> dict[str, str]:
    """Limit memory, leave the network, and cover the files `hidden`. Returns what keeps each of the two away."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLONE_NEWNET | _CLONE_NEWNS | (0 if os.geteuid() == 0 else _CLONE_NEWUSER)
    in_force = {"network": HOOK, "text": HOOK}
    if libc.unshare(flags) == 0:
        in_force["network"] = NAMESPACE
        covered = libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0
        for path in hidden:
            covered &= libc.mount(b"/dev/null", os.fsencode(path), None, _MS_BIND, None) == 0
        if covered:
            in_force["text"] = NAMESPACE
    forbidden = {os.path.realpath(path) for path in hidden}

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
            raise PermissionError("a predictor has no network")
        opened = os.fsdecode(arguments[0]) if event == "open" and isinstance(arguments[0], (str, bytes)) else ""
        if opened and os.path.realpath(opened) in forbidden:
            raise PermissionError("a predictor has no access to the text it is scored on")

    sys.addaudithook(refuse)  # cannot be removed; a second line where there are namespaces
    return in_force


def load(target: str) -> Any:
    """What the factory `file.py:name` in the current folder returns."""
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
    """One line about an error in somebody else's code."""
    return f"{type(error).__name__}: {error}".encode(errors="replace")[:MAX_TEXT]


def main() -> None:
    """Run `eval.audit.worker FACTORY MEMORY HIDDEN READ_FD WRITE_FD`."""
    factory, memory, hidden, read, write = sys.argv[1:]
    with os.fdopen(int(read), "rb") as requests, os.fdopen(int(write), "wb") as answers:
        in_force = isolate(int(memory), json.loads(hidden))
        try:
            predictor = load(factory)
        except BaseException as error:
            send(answers, FAILED, describe(error))
            return
        send(answers, OK, json.dumps({**in_force, "peeks": hasattr(predictor, "peek")}).encode())
        serve(predictor, requests, answers)


if __name__ == "__main__":
    main()
