"""Starting a command in a fork of a process that has imported everything.

Why that is honest: what a start costs is four fifths imports, the same each time, before the command has opened a file
or a connection; only they are skipped. The fork runs the command's own `main`, with its own arguments, environment,
output, process group and random numbers (keys come from the system, never from a state that two forks would share).
The process that forks is refused where it has a second thread, whose locks a fork would find taken for ever, and it
holds neither a connection nor a file of any federation.
"""

import ctypes
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

_EVERYTHING = (
    "fedprofile.client.cli",
    "fedprofile.client.agreement",
    "fedprofile.client.records",
    "fedprofile.client.participation",
    "fedprofile.server.cli",
    "fedprofile.server.runs",
    "fedprofile.server.initial",
    "fedprofile.server.status",
    "opacus.accountants",
    "transformers.models.bert.modeling_bert",
)
_BROKEN = 70
"""Exit code where something else than the command's own end went through `main`."""
_DIE_WITH_PARENT = 1


def warm_up() -> None:
    """Import what the commands import when they run."""
    for name in _EVERYTHING:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def fork(run: Callable[[], None], output: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run something in a fork.

    Args:
        run: What; its process ends with it, by `SystemExit` with that code.
        output: Where its standard output and error are appended.
        environment: What is added to its environment.

    Returns:
        The process id; wait for it.

    Raises:
        RuntimeError: This process has more than one thread.
    """
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208
        raise RuntimeError("a process with several threads must not be forked.")
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    code = _BROKEN
    try:
        _settle(output, environment or {}, parent)
        code = _code_of(run)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_to_end(run: Callable[[], None], output: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run something in a fork and wait for it: what might start threads is kept out of this process.

    Raises:
        RuntimeError: It failed; its output says why.
    """
    _, status = os.waitpid(fork(run, output, environment), 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"it failed; see {output}:\n{output.read_text()}")


def _settle(output: Path, environment: Mapping[str, str], parent: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_BROKEN)
    os.environ.update(environment)
    written = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, place in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, place)


def _code_of(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return _BROKEN
    return 0
