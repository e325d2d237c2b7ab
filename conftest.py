"""Settings of every test and docstring example: hypothesis without deadlines, notes that are shown, and what needs
Triton left out.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

from codec.console import notes

settings.register_profile("underpar", deadline=None, derandomize=True)  # a first call may compile
settings.load_profile("underpar")

# Triton reads this when it is first imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_OF_TRITON = [
    "codec/backends/cuda",
    "trainer/kernels",
    "tests/codec/backends/cuda",
    "tests/benchmarks/test_gpu_recall_speed.py",
    "tests/benchmarks/test_gpu_speed.py",
]
collect_ignore = [] if find_spec("triton") else _OF_TRITON  # there is none for this system


@pytest.fixture(autouse=True)
def _notes_are_shown():
    """Undo what a command with `--quiet` leaves in this process."""
    yield
    notes.quiet = False
