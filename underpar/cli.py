"""The `underpar` command: the messages and exit statuses of errors, and its help."""

import atexit
import io
import os
import sys
from pathlib import Path

from codec.console import CheckFailed, Stopped, fail, stoppable
from codec.errors import CodecError
from underpar import help
from underpar.platforms import is_tested, note_untested


def run() -> None:
    """Run the command line as a process; one that a signal has ended does not wait for what its threads are at."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.__context__, Stopped):
            atexit._run_exitfuncs()  # which end processes of ours; the interpreter would join the threads before
            os._exit(int(ended.code or 0))
        raise


def main() -> None:
    """Run the command line: exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted, 141 a closed pipe."""
    # Threads that wait for each other must not spin: on shared cores, a step of training would take 20 times as long.
    # OpenMP reads this variable when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets another in its place
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with stoppable():
                _command()
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # which typer makes status 1 of
                _leave_pipe()
            if sys.stdout is not None:
                sys.stdout.flush()
            raise
    except BrokenPipeError:
        _leave_pipe()
    except Stopped as stopped:
        fail(str(stopped), 128 + stopped.number)
    except KeyboardInterrupt:
        sys.exit(130)
    except CheckFailed as failed:
        fail(str(failed), 1)
    except CodecError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error}; check the path, its permissions and the space on its disk", 2)


def _command() -> None:
    """Run the command that the arguments name: at once where neither typer nor a library has to look at them."""
    # A path that names a file called "-" would become "-", standard input, as soon as it is a Path.
    words = [str(Path(word).absolute()) if word != "-" and Path(word) == Path("-") else word for word in sys.argv[1:]]
    if words in (["--help"], ["-h"]):
        print(help.FILE.read_text(encoding="utf-8"), end="")
        sys.exit()
    if words in (["--version"], ["-V"]):
        print(help.version())
        sys.exit()
    if not is_tested():
        note_untested()
    if words[:1] in (["encode"], ["decode"]) and "_UNDERPAR_COMPLETE" not in os.environ:
        from underpar.arguments import read
        from underpar.commands import function

        command = function(words[0])
        arguments = read(command, words[1:])
        if arguments is not None:
            command(**arguments)
            sys.exit()
    from underpar.commands import app

    app(words, prog_name="underpar")


def _leave_pipe() -> None:
    """End silently because nobody reads this process's output; 141 is the status that a shell gives SIGPIPE."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # for what is flushed at the end of Python
    sys.exit(141)
