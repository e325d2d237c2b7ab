"""Make the environment in which a child process imports the same code."""

import os
from pathlib import Path

import codec


def source_folder() -> str:
    """Return the folder that `codec` and the project's other packages are imported from."""
    return str(Path(codec.__file__).parents[1])


def child_environment() -> dict[str, str]:
    """Copy this process's environment, with `source_folder` first on PYTHONPATH."""
    path = filter(None, [source_folder(), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
