"""Compile functions with numba, and cache the machine code so that it never outlives an edit of its sources.

Numba's own cache notices changes in the file of the outermost function only. Machine code holds copies of functions
and constants from many files, so after an edit in another file the old machine code would go on running. Here machine
code is cached in the folder of `codec.cache`, which is another folder after any edit. Numba adds the name and the
features of the processor to the key of each function.
"""

import atexit
import hashlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding as llvm
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import rtsys

from codec import startup
from codec.cache import cache_folder, kept
from codec.console import wait_for
from codec.devices import processors
from codec.processes import child_environment

COMPILING = "compiling for this machine, once"  # what people are told while they wait

ENABLED = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
"""False where numba is told not to compile; functions that exist as machine code only cannot be called then."""


def compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function at its first call, or loads its machine code from the cache.

    With NUMBA_DISABLE_JIT=1 functions are not compiled.

    Args:
        options: passed to `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if not ENABLED:
            return np.errstate(over="ignore")(function)  # integers wrap, as they do in machine code
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate


compiled = compiler(nogil=True, _nrt=False)
"""Compile a function that neither makes, keeps nor returns arrays, nor calls one that returns them.

References to arrays are not counted, so callers must hold them. Counting took half of the time of a bit of context
mixing and nine tenths of compiling, and three quarters of the time of the coder of edits.

A division by zero raises as in Python. Unsigned integers wrap. Signed ones must not: numba tells LLVM that they never
do (`nsw`), and what LLVM makes of one that does depends on the processor."""

making = compiler(nogil=True)
"""Compile a function that makes, keeps or returns arrays; as `compiled` otherwise."""

kernel = compiler(nogil=True, error_model="numpy")
"""Compile a loop over rows: other threads run beside the loop, and a division by zero gives IEEE's infinity or NaN."""


def processor() -> tuple[str, ...]:
    """Return the name and features of the processor that numba compiles for; its variables can change them."""
    from numba.core.registry import cpu_target

    return tuple(map(str, cpu_target.target_context.codegen().magic_tuple()))


def check_once(name: str, check: Callable[[], None]) -> None:
    """Run a check of machine code, unless an earlier process passed the check with the same sources and processor.

    Args:
        name: of the check, for the cache.
        check: raises an error where the code does not do what its source says; such a verdict is not cached.
    """

    def run() -> bytes:
        check()
        return b"holds"

    verdict = _verdict(name)
    while (child := _children.get(name)) and child.poll() is None and not (cache_folder() / verdict).exists():
        wait_for(COMPILING)
        time.sleep(0.05)
    kept(verdict, run)


def _verdict(name: str) -> str:
    return f"verdicts/{name}-{hashlib.sha256(repr(processor()).encode()).hexdigest()[:32]}"


def check_beside(**modules: str) -> None:
    """Begin checks that have not been passed yet in another process, if there is a processor for it.

    `check_once` waits for that process, which saves a quarter of the minute that a first run on a machine compiles.

    Args:
        modules: for the name of each check the module whose `check_once` runs the check.
    """
    missing = {name: module for name, module in modules.items() if not (cache_folder() / _verdict(name)).exists()}
    if _children or not missing or not ENABLED or processors() < 2:
        return
    code = "; ".join(f"import {module}; {module}.check_once()" for module in missing.values())
    command, none = [sys.executable, "-c", code], subprocess.DEVNULL
    with suppress(OSError):
        child = subprocess.Popen(command, env=child_environment(), stdin=none, stdout=none, stderr=none)
        atexit.register(child.kill)
        _children.update(dict.fromkeys(missing, child))


_children: dict[str, subprocess.Popen[bytes]] = {}  # of `check_beside`, by the names of their checks


class _Locator:
    """Tell numba where the machine code of one function is cached."""

    def __init__(self, function: Any):
        self._py_file = function.__code__.co_filename
        self._line = function.__code__.co_firstlineno

    def ensure_cache_path(self) -> None:
        Path(self.get_cache_path()).mkdir(mode=0o700, parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_folder() / "numba")

    def get_source_stamp(self) -> str:
        """Hash the file of the function, which may be outside the package that `source_hash` covers."""
        return _file_hash(self._py_file)

    def get_disambiguator(self) -> str:
        return str(self._line)


@lru_cache
def _file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class _Library(JITCodeLibrary):
    """Machine code out of the cache; its bitcode is parsed when a caller is compiled, which may take it in."""

    _bitcode: bytes

    @classmethod
    def load(cls, codegen: Any, name: str, code: bytes, bitcode: bytes) -> "_Library":
        """Load the machine code of a library."""
        library = cls(codegen, name)
        library._bitcode = bitcode
        library.enable_object_caching()
        library._set_compiled_object(code)
        library._finalize_final_module()
        return library

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            self._shared_module = llvm.parse_bitcode(self._bitcode)
            self._codegen._engine._load_defined_symbols(self._shared_module)
        return self._shared_module


def _frozen(environment: Environment) -> tuple[str, list[Any]]:
    return environment.env_name, environment.consts


def _thawed(name: str, constants: list[Any]) -> Environment:
    """Return the environment of a function: constants, and no globals, which only object mode reads.

    Numba would import the module of each function that was compiled in, for example of `str`. It keeps environments
    only with the name of a module (`can_cache`), also in the cache of a function that takes this one in.
    """
    found = lookup_environment(name)
    if found is None:
        found = Environment._memo[name] = Environment({"__name__": __name__})
        found.env_name = name
        found.consts[:] = constants
    return found


class _Format(CompileResultCacheImpl):
    """Write compiled functions as numba does, but to the folder of `_Locator`, whatever numba's variables say."""

    def __init__(self, function: Any):
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        name = f"{function.__module__}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))

    def reduce(self, data: Any) -> Any:
        """Return what is kept of a compiled function, as numba does, but environments without their modules."""
        library, fndesc, env, *others, environments = super().reduce(data)
        return library, fndesc, _frozen(env), *others, tuple(map(_frozen, environments))

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        """Make a compiled function of what `reduce` made, as numba does, but without parsing bitcode."""
        library, fndesc, env, *others, environments = payload
        payload = library, fndesc, _thawed(*env), *others, tuple(_thawed(*each) for each in environments)
        (name, kind, data), fndesc, env, signature, objectmode, lifted, annotation, reload_init, environments = payload
        if kind != "object" or reload_init:
            return super().rebuild(target_context, payload)
        codegen = target_context.codegen()
        library = _Library.load(codegen, name, *data)
        names = (fndesc.llvm_func_name, fndesc.llvm_cpython_wrapper_name, fndesc.llvm_cfunc_wrapper_name)
        codegen._engine._defined_symbols.update(names)
        make: Any = CompileResult  # a named tuple whose fields numba computes
        result = make(
            typing_context=target_context.typing_context,
            target_context=target_context,
            entry_point=target_context.get_executable(library, fndesc, env),
            typing_error=None,
            type_annotation=annotation,
            signature=signature,
            objectmode=objectmode,
            lifted=lifted,
            fndesc=fndesc,
            library=library,
            call_helper=None,
            environment=env,
            metadata=None,
            reload_init=reload_init,
            referenced_envs=environments,
        )
        for environment in environments:
            codegen.set_env(environment.env_name, environment)
        return result


class _Cache(FunctionCache):
    """Cache one function; a full disk or a damaged file costs another compilation and never fails the command."""

    _impl_class = _Format

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load machine code without what only compiling needs: importing that takes numba half a second."""
        with self._guard_against_spurious_io_errors():
            rtsys.initialize(target_context)
            found = self._load_overload(sig, target_context)
            if found is None:
                wait_for(COMPILING)
                startup.begin()  # numba compiles now, and saves
            return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save machine code that was compiled because `load_overload` found none."""
        startup.end()
        super().save_overload(sig, data)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            yield
