"""Actors for tests of a pool, which its worker processes import."""

import os
import time
from pathlib import Path

from codec.cache import source_hash
from codec.errors import FormatError


class Simple:
    """Does what tests ask for; `content` is what the pool stored."""

    def __init__(self, content: str, kind: str, threads: int):
        if content == "not importable":
            raise ModuleNotFoundError("No module named 'codec'")
        self._content = content

    def start(self):
        """Say which code this is."""
        return ("another" if self._content == "another version" else source_hash()), None

    def double(self, number: int, seconds: float = 0.0):
        """Return twice a number, or a CodecError for one below zero; a text is a fault of the actor."""
        time.sleep(seconds)
        if number < 0:
            return None, FormatError(f"number {number}: below zero")
        return 2 * number + 0, None

    def length(self, data: bytes):
        """Return as many zeros as there are bytes."""
        return bytes(len(data)), None

    def die_once(self, mark: str, number: int):
        """End the process, unless the file is there; then as `double`."""
        if not Path(mark).exists():
            Path(mark).touch()
            os._exit(7)
        return self.double(number)

    def die(self):
        """End the process."""
        os._exit(7)

    def where(self, seconds: float):
        """Return the node."""
        import ray

        time.sleep(seconds)
        return ray.get_runtime_context().get_node_id(), None
