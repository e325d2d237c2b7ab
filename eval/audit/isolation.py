"""Run a program without rights, with a root folder, processes, shared memory and a network of its own.

This module runs as a script with a plan on standard input, a JSON object with the fields of `Plan`. The module imports
only the standard library, because namespaces need a single thread. The program sees the interpreter, the folders that
the plan names (read-only), a new `/tmp`, three harmless devices and its own processes. The program has no
capability, in a user namespace of its own, which also separates the kernel's key rings. Where the kernel grants no
namespaces, the program runs without namespaces. The descriptor `answers` is told first which isolation is in force,
before the program can write anything.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HEAD = struct.Struct("<cI")
"""The head of an answer: a status byte and the number of bytes that follow."""

OK, FAILED = b"k", b"f"

ROOT, HOOK = "private root", "audit hook"
"""The means that keep a program from the text: a root without a path to the text, or Python's refusal of the path."""

NAMESPACE = "namespace"
"""The means that keeps a program from the network; `HOOK` where Python refuses sockets."""

MAX_FILE = 64 << 20
"""The most bytes that the program may write into one file."""

SCRATCH = 256 << 20
"""The most bytes that `/tmp` holds."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_NEW = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of <sched.h>."""

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC, _REMOUNT = 1, 2, 4, 8, 32  # MS_ constants of <sys/mount.h>
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2

_MOUNT_SETATTR = 442  # a system call; the same number on every architecture
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION = 1

_PARENT_DEATH, _DROP_BOUNDING, _NO_NEW_PRIVILEGES = 1, 24, 38  # PR_ constants of <sys/prctl.h>
_KILL = 9


class Plan(NamedTuple):
    """A program to run, and the files that it may see.

    Attributes:
        root: an empty folder, for the mount of the private root.
        seen: [folder or file, its path inside], read-only.
        links: [name, target] of symbolic links.
        covered: files and folders of `seen` that are made empty.
        memory: the most bytes of address space.
        command: the program and its arguments, inside.
        environment: the program's environment, inside.
        outside: command, environment and current folder, used where there are no namespaces.
        answers: the descriptor that is told the isolation.
    """

    root: str
    seen: list[list[str]]
    links: list[list[str]]
    covered: list[str]
    memory: int
    command: list[str]
    environment: dict[str, str]
    outside: dict[str, Any]
    answers: int


def main() -> None:
    """Run the plan on standard input; the exit status is the program's."""
    plan = Plan(**json.load(sys.stdin))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for kind, most in (
        (resource.RLIMIT_AS, plan.memory),
        (resource.RLIMIT_FSIZE, MAX_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    failed, failure = os.pipe()
    child = os.fork()
    if not child:
        os.close(failed)
        _run_inside(plan, failure)
    os.close(failure)
    with os.fdopen(failed, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    if not reason:
        _wait(child)
    os.waitpid(child, 0)
    tell(plan.answers, {"network": HOOK, "text": HOOK, "reason": reason})
    os.chdir(plan.outside["folder"])
    os.execve(plan.outside["command"][0], plan.outside["command"], plan.outside["environment"])


def tell(descriptor: int, values: dict[str, str]) -> None:
    """Write an answer whose content is `values` as JSON."""
    content = json.dumps(values).encode()
    os.write(descriptor, HEAD.pack(OK, len(content)) + content)


def _run_inside(plan: Plan, failure: int) -> None:
    """Isolate this process and become the program; on failure write the reason and exit."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _call(libc.prctl(_PARENT_DEATH, _KILL, 0, 0, 0), "prctl")
        user, group = os.geteuid(), os.getegid()
        _call(libc.unshare(_NEW), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        child = os.fork()  # the first process of the new namespace; the namespace ends with this process
        if child:
            _wait(child)
        _call(libc.prctl(_PARENT_DEATH, _KILL, 0, 0, 0), "prctl")
        _enter_root(libc, plan)
        _give_up_rights(libc)
    except BaseException as error:
        os.write(failure, (str(error) or type(error).__name__).encode(errors="replace")[:200])
        os._exit(1)
    try:
        tell(plan.answers, {"network": NAMESPACE, "text": ROOT})
        os.execve(plan.command[0], plan.command, plan.environment)
    finally:
        os._exit(1)


def _wait(child: int) -> NoReturn:
    """Wait for `child` and exit with its status; close all descriptors first, so that pipes end when `child` ends."""
    os.closerange(0, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
    os._exit(min(255, abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))))


def _enter_root(libc: ctypes.CDLL, plan: Plan) -> None:
    """Build the private root of `plan` and leave the machine's own."""
    with suppress(OSError):
        Path("/proc/sys/user/max_user_namespaces").write_text("0")  # of this user namespace: none inside
    root = Path(plan.root)
    _mount(libc, "none", "/", None, _RECURSIVE | _PRIVATE)
    _mount(libc, "tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    # before the files, of which some may lie below /tmp: a checkout's environment, say
    _mount(libc, "tmpfs", _place(root, "/tmp", True), "tmpfs", _NO_SUID | _NO_DEVICES, f"mode=1777,size={SCRATCH}")
    for source, target in plan.seen:
        inside = _place(root, target, Path(source).is_dir())
        _mount(libc, source, inside, None, _BIND | _RECURSIVE)
        _protect(libc, inside)
    for path in plan.covered:
        if (inside := root / path.lstrip("/")).is_dir():
            _mount(libc, "tmpfs", inside, "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEVICES, "size=4k")
        elif inside.exists():
            _mount(libc, "/dev/null", inside, None, _BIND)
    for name, value in plan.links:
        (link := root / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        if not link.exists() and not link.is_symlink():
            link.symlink_to(value)
    for device in DEVICES:
        _mount(libc, device, _place(root, device, False), None, _BIND)
    with suppress(OSError):  # a container may refuse; then there is no /proc
        _mount(libc, "proc", _place(root, "/proc", True), "proc", _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_EXEC)
    old = _place(root, "/old", True)
    _call(libc.pivot_root(os.fsencode(root), os.fsencode(old)), "pivot_root")
    os.chdir("/")
    _call(libc.umount2(b"/old", _DETACH), "umount2")
    Path("/old").rmdir()
    _mount(libc, "none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    os.chdir("/claim")


def _place(root: Path, name: str, folder: bool) -> Path:
    """Make the folder or empty file for a mount."""
    inside = root / name.lstrip("/")
    (inside if folder else inside.parent).mkdir(parents=True, exist_ok=True)
    if not folder:
        inside.touch()
    return inside


def _mount(libc: ctypes.CDLL, source: object, target: object, kind: str | None, flags: int, data: str = "") -> None:
    words = (os.fsencode(str(source)), os.fsencode(str(target)), kind.encode() if kind else None)
    _call(libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}")


def _protect(libc: ctypes.CDLL, inside: Path) -> None:
    """Make a mount and all mounts below it read-only, without devices and without set-user-id programs."""
    attributes = struct.pack("<4Q", _READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)  # struct mount_attr
    recursive, nowhere = 0x8000, -100  # AT_RECURSIVE, AT_FDCWD
    words = (ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(nowhere), os.fsencode(inside), ctypes.c_uint(recursive))
    _call(libc.syscall(*words, attributes, ctypes.c_size_t(len(attributes))), f"mount_setattr {inside}")


def _give_up_rights(libc: ctypes.CDLL) -> None:
    """Leave the session's key ring, drop every capability for good, and forbid new privileges."""
    if number := _KEYCTL.get(platform.machine()):
        libc.syscall(ctypes.c_long(number), ctypes.c_int(_JOIN_SESSION), None)  # fails where there are no key rings
    capability = 0
    while libc.prctl(_DROP_BOUNDING, capability, 0, 0, 0) == 0:
        capability += 1
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(libc.capset(header, bytes(24)), "capset")
    _call(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _call(libc.prctl(_PARENT_DEATH, _KILL, 0, 0, 0), "prctl")


def _call(result: int, name: str) -> None:
    if result != 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
