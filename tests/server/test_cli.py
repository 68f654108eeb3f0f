"""The commands as processes: exit codes, sentences, and kill -9 in mid-run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from fedprofile.common.card import load_card
from fedprofile.common.enrolment import Enrolment, Invite, Promise, file_text, read_exchanged, write_public_key
from fedprofile.common.messages import Arrays, Request
from fedprofile.server.checkpoint import dump_arrays
from fedprofile.server.directory import ServerDirectory

if TYPE_CHECKING:
    from tests.server.conftest import Server

Add = Callable[[float], Callable[[Request, Message], Message]]
PROGRAM = Path(sys.executable).parent / "flower-server"


def _run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_help_is_immediate_and_brings_neither_torch_nor_flower() -> None:
    script = (
        "import sys\nfrom fedprofile.server.cli import app\n"
        "try:\n    app(['--help'], standalone_mode=False)\nfinally:\n"
        "    print(sorted({'torch', 'flwr', 'transformers', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    fastest = 100.0
    for _ in range(3):
        started = time.monotonic()
        for command in ("init", "invite", "enroll", "revoke", "start", "status", "export"):
            assert command in _run("--help").stdout
            break
        fastest = min(fastest, time.monotonic() - started)
    assert fastest < 1.0
    assert _run("start", "--help").stdout


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's directory as `init` leaves it."""
    root = tmp_path_factory.mktemp("init") / "server"
    _run("init", root, "--host", "federation.example.org", "--port", 9001, "--admin-port", 9002, "--health-port", 9003,
         "--base", tiny_base, "--base-id", "example/tiny-bert")  # fmt: skip
    return root


def test_init_makes_a_directory_that_is_valid_as_it_is(made: Path) -> None:
    directory = ServerDirectory(made)
    card, settings = directory.card(), directory.settings()
    assert card.base.id == "example/tiny-bert" and card.task.kind == "binary"
    assert (settings.address, settings.listen) == ("federation.example.org:9001", "0.0.0.0")
    assert (settings.admin_port, settings.health_port) == (9002, 9003)
    for private in ("ca.key", "server.key", "operator.token", "state"):
        assert (made / private).stat().st_mode & 0o077 == 0
    assert len(directory.operator_token.read_text().strip()) >= 40
    status = json.loads(_run("status", "--dir", made, "--json").stdout)
    assert (status["state"], status["tenants"]) == ("not started", [])


def test_init_refuses_what_is_not_empty_and_values_that_are_none(made: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert "is not empty" in _run("init", made, code=2).stderr
    assert before == {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    (tmp_path / "file").write_text("x")
    assert "is not empty" in _run("init", tmp_path / "file", code=2).stderr
    new = tmp_path / "new"
    for options in (("--host", "a b"), ("--port", 70000), ("--port", 8444), ("--name", "no name"),
                    ("--base", tmp_path)):  # fmt: skip
        assert _run("init", new, *options, code=2).stderr.startswith("error: ")
    assert not new.exists()


@pytest.mark.base
def test_init_knows_the_embedded_base_and_invites_with_its_card(tmp_path: Path) -> None:
    root = tmp_path / "server"
    _run("init", root)
    card = load_card(root / "federation.toml")
    assert card.base.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert ServerDirectory(root).settings().listen == "127.0.0.1"
    done = json.loads(_run("invite", "acme", "--dir", root, "--json").stdout)
    invite = read_exchanged(Path(done["file"]), Invite)
    assert Path(done["file"]) == root / "acme.invite"
    assert invite.read_card() == card and invite.address == "localhost:8443"
    assert invite.ca == (root / "ca.crt").read_text()


def test_invite_enroll_revoke_and_status(made: Path, tmp_path: Path) -> None:
    _run("invite", "acme", "--dir", made, "--out", tmp_path / "a.invite")
    invite = read_exchanged(tmp_path / "a.invite", Invite)
    key = ec.generate_private_key(ec.SECP384R1())
    enrolment = Enrolment(
        tenant="acme",
        public_key=write_public_key(key.public_key()),
        card_hash=invite.card_hash,
        declared_users=500,
        promise=Promise(epsilon=3.0, delta=1e-6),
    ).signed_by(key)
    file = tmp_path / "acme.enroll"
    file.write_text(file_text(enrolment))
    assert (
        "enrolled: declared_users=500, epsilon=3 (delta=1e-06, unit=user" in _run("enroll", file, "--dir", made).stdout
    )
    assert "was enrolled already" in _run("enroll", file, "--dir", made).stdout
    [tenant] = json.loads(_run("status", "--dir", made, "--json").stdout)["tenants"]
    assert tenant["enrolled"] and not tenant["revoked"] and tenant["declared_users"] == 500
    file.write_text(
        file_text(enrolment.model_copy(update={"promise": Promise(epsilon=20.0, delta=1e-6)}).signed_by(key))
    )
    assert "max_epsilon" in _run("enroll", file, "--dir", made, code=3).stderr
    failed = _run("enroll", tmp_path / "none.enroll", "--dir", made, "--json", code=2)
    assert json.loads(failed.stderr)["code"] == 2
    _run("revoke", "acme", "--dir", made)
    assert "acme: revoked" in _run("status", "--dir", made).stdout
    assert "not on the roster" in _run("revoke", "nobody", "--dir", made, code=2).stderr


def test_what_is_no_servers_directory_is_one_sentence(tmp_path: Path) -> None:
    for command in (
        ("status",),
        ("start",),
        ("invite", "acme"),
        ("revoke", "acme"),
        ("export", "--out", tmp_path / "x"),
    ):
        assert "flower-server init" in _run(*command, "--dir", tmp_path / "none", code=2).stderr


def test_export_before_the_first_round_says_so(made: Path, tmp_path: Path) -> None:
    assert "nothing to export" in _run("export", "--dir", made, "--out", tmp_path / "out", code=2).stderr


class Process:
    """A `flower-server start` on a prepared directory."""

    def __init__(self, server: "Server", initial: Arrays) -> None:
        directory = server.directory
        metadata = {"card_hash": directory.card().hash, "order": " ".join(initial)}
        directory.initial_adapter.write_bytes(dump_arrays(initial, metadata))
        self.server, self.output = server, directory.root / "out"
        self.start()

    def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [PROGRAM, "start", "--dir", str(self.server.directory.root)],
                stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def rounds(self) -> list[int]:
        if not self.server.directory.history.exists():
            return []
        return [line["round"] for line in self.server.history() if line["kind"] == "train"]

    def end(self, code: int) -> None:
        self.server.until(lambda: self.process.poll() is not None, seconds=120)
        assert self.process.returncode == code, self.output.read_text()


def _slow(answer: Callable[[Request, Message], Message]) -> Callable[[Request, Message], Message]:
    def wait(request: Request, message: Message) -> Message:
        time.sleep(0.15)
        return answer(request, message)

    return wait


def test_killed_again_and_again_it_goes_on_at_the_right_round(
    make_server: Callable[..., "Server"], add: Add, initial: Arrays
) -> None:
    server = make_server(
        training={"rounds": 12}, aggregation={"strategy": "fedavgm", "learning_rate": 0.5, "momentum": 0.5}
    )
    one, two = server.enrol("one", _slow(add(1.0))).start_later(), server.enrol("two", add(1.0)).start_later()
    process = Process(server, initial)
    for goal in (2, 5, 9):
        server.until(lambda goal=goal: len(process.rounds()) >= goal, seconds=120)  # type: ignore[misc]
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
        status: dict[str, Any] = json.loads(_run("status", "--dir", server.directory.root, "--json").stdout)
        assert status["state"] == "killed" and not status["running"]
        process.start()
    process.end(0)
    assert process.rounds() == list(range(1, 13))
    assert "going on after round" in process.output.read_text()
    velocity, total = 0.0, 0.0
    for _ in range(12):
        velocity = 0.5 * velocity + 1.0
        total += 0.5 * velocity
    assert one.heard[-1].round == 12 and two.heard
    np.testing.assert_allclose(one.heard[-1].arrays["head.bias"], total, rtol=1e-5)


def test_a_second_server_in_one_directory_is_refused_and_a_stopped_one_ends_well(
    make_server: Callable[..., "Server"], initial: Arrays
) -> None:
    server = make_server()
    process = Process(server, initial)
    server.until(lambda: "waiting for tenants" in process.output.read_text(), seconds=60)
    assert "already running" in _run("start", "--dir", server.directory.root, code=2).stderr
    assert json.loads(_run("status", "--dir", server.directory.root, "--json").stdout)["state"] == "waiting"
    loaded = Path(f"/proc/{process.process.pid}/maps").read_text()
    assert "libtorch" not in loaded
    process.process.send_signal(signal.SIGTERM)
    process.end(0)
    assert "start it again to go on" in process.output.read_text()


def test_a_base_that_is_not_there_is_one_sentence(made: Path, tmp_path: Path) -> None:
    settings = made / "server.toml"
    text = settings.read_text()
    settings.write_text("\n".join(line for line in text.splitlines() if not line.startswith("base ")) + "\n")
    try:
        failed = _run("start", "--dir", made, code=2)
    finally:
        settings.write_text(text)
    assert "the initial adapter cannot be computed" in failed.stderr and "example/tiny-bert" in failed.stderr
