"""What every command line shares: one place where an error becomes one sentence, and an exit code.

    0    done
    1    an error that is ours
    2    bad input: a file, an option, a value
    3    refused by policy or budget
    130  interrupted

With `--json` anywhere on the command line the sentence is `{"error": ..., "code": ...}` on standard error.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click
import typer

from fedprofile.common.errors import FedprofileError

INTERRUPTED = 130
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def run_command(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a typer application and leave the process.

    Args:
        app: The application.
        name: What to call it in help and errors.
        arguments: Instead of `sys.argv[1:]`.

    Raises:
        SystemExit: Always, with one of the module's exit codes.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = app(args=given, prog_name=name, standalone_mode=False)
    except FedprofileError as error:
        _fail(str(error), error.exit_code, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        raise SystemExit(2) from None
    except click.ClickException as error:
        _fail(f"{error.format_message()} See `{name} --help`.", 2, as_json)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", INTERRUPTED, as_json)
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("FEDPROFILE_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            _fail(
                f"the disk is full or read-only ({error.strerror}); make room or make it writable, and run it again: "
                "what was written before is whole.",
                2,
                as_json,
            )
        # The text of an unforeseen exception may hold a cell of someone's data, so only its type is shown.
        _fail(
            f"{type(error).__name__}: this is an error of {name}, not of yours; "
            "run it again with FEDPROFILE_DEBUG=1 and report what it shows after you took out private data.",
            1,
            as_json,
        )
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": sentence, "code": code}), file=sys.stderr)
    else:
        print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def show(text: str, data: Any, as_json: bool) -> None:
    """Print a result for a person or for a machine.

    Args:
        text: For a person.
        data: For a machine, JSON values only.
        as_json: Which of the two.
    """
    print(json.dumps(data, indent=2) if as_json else text, flush=True)


def line_printer() -> Callable[[str], None]:
    """A function that prints one plain line and flushes, for commands that run long."""

    def say(line: str) -> None:
        print(line, flush=True)

    return say
