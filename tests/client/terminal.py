"""A real process at a real terminal."""

import os
import pty
import subprocess
from pathlib import Path


def on_a_terminal(
    command: list[str | Path], answer: str = "", environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a command whose input and output are a terminal.

    Args:
        command: The program and its arguments.
        answer: What a person types, once.
        environment: Of the process.

    Returns:
        Exit code and everything on the screen.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    os.write(master, f"{answer}\n".encode())
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # The other side is closed.
            break
        if not part:
            break
        shown += part
    os.close(master)
    return process.wait(), shown.decode()
