"""What a command says when the machine fails it."""

from pathlib import Path

import pytest
import typer

from fedprofile.common.cli import run_command


def test_a_full_disk_is_not_called_our_error(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def write() -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x")

    with pytest.raises(SystemExit) as ended:
        run_command(app, "flower", [])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the disk is full or read-only (No space left on device)") and error.count("\n") == 1


def test_an_unforeseen_error_tells_its_type_and_not_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise ValueError("alice@example.org paid 913.55")

    with pytest.raises(SystemExit) as ended:
        run_command(app, "flower", [])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "ValueError: this is an error of flower, not of yours" in error and "alice" not in error
