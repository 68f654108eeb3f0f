"""What the commands of `flower-client` have in common."""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedprofile.client.directory import TenantDirectory

Directory = Annotated[Path, typer.Option("--dir", help="The tenant's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def ask(option: str, question: str, yes: bool, as_json: bool) -> None:
    """Let a person at a terminal agree, unless `--yes` did."""
    from fedprofile.common.errors import ConfigError, PolicyRefusal

    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigError(f"{option} asks on a terminal; give --yes where there is none.")
    if not typer.confirm(question):
        raise PolicyRefusal("you did not agree; nothing was written.")


def logged(place: "TenantDirectory") -> Callable[[str], None]:
    """Send this package's log to client.log only, and give a function that says a line there and on the screen."""
    place.log.touch(mode=0o600)
    handler = logging.FileHandler(place.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("fedprofile")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    ours.propagate = False
    # Other people's loggers may put anything into their lines.
    logging.getLogger("flwr").setLevel(logging.CRITICAL)

    def say(line: str) -> None:
        ours.info("%s", line)
        print(line, flush=True)

    return say


def stop_on_signals() -> threading.Event:
    from fedprofile.client.transport import StoppedError

    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        # Raised where the main thread is, once: leaving the federation must not be interrupted again.
        if not stop.is_set():
            stop.set()
            raise StoppedError

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return stop
