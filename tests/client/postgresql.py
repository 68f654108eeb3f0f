"""A real PostgreSQL of the tests' own: in a temporary folder, reachable through a socket in it and by no network."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

PASSWORD = "correct-horse"
OWNER, READER = "owner", "reader"


@dataclass(frozen=True)
class PostgreSQL:
    """A running server.

    Args:
        sockets: The folder of its socket.
    """

    sockets: Path

    def connect(self) -> psycopg.Connection:
        """As the user who may do everything; each statement is committed at once."""
        return psycopg.connect(
            host=str(self.sockets), user=OWNER, password=PASSWORD, dbname="postgres", autocommit=True
        )

    def url(self, user: str = OWNER, password: str = f":{PASSWORD}", database: str = "postgres", more: str = "") -> str:
        """What a tenant file gives."""
        return f"postgresql+psycopg://{user}{password}@/{database}?host={self.sockets}{more}"


def programs() -> Path | None:
    """Where `initdb` and `postgres` are; Debian keeps them out of the search path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "initdb").exists() and (one / "postgres").exists()), None)


@contextmanager
def running(folder: Path) -> Iterator[PostgreSQL]:
    """Start a server, and end it by its process id.

    Args:
        folder: Where the programs are.
    """
    # Not below pytest's folder, which is for root alone where root runs the tests; PostgreSQL refuses to be root.
    home = Path(tempfile.mkdtemp(prefix="fedprofile-postgresql-", dir="/tmp"))
    user = "nobody" if os.getuid() == 0 else None
    if user is not None:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    try:
        given = home / "password"
        given.write_text(PASSWORD)
        arguments = [f"--pgdata={home}/data", f"--username={OWNER}", f"--pwfile={given}", "--auth=scram-sha-256"]
        subprocess.run(
            [folder / "initdb", *arguments, "--encoding=UTF8", "--locale=C", "--no-sync"],
            user=user,
            env=environment,
            cwd=home,
            check=True,
            capture_output=True,
        )
        options = {"listen_addresses": "", "unix_socket_directories": str(home), "fsync": "off"}
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [folder / "postgres", "-D", home / "data", *(f"--{name}={value}" for name, value in options.items())],
                user=user,
                env=environment,
                cwd=home,
                stdout=log,
                stderr=log,
            )
        try:
            found = PostgreSQL(home)
            _wait(found, server)
            with found.connect() as connection:
                connection.execute(f"CREATE ROLE {READER} LOGIN PASSWORD '{PASSWORD}'")
            yield found
        finally:
            # Immediately: a test may have left a connection open.
            server.send_signal(signal.SIGQUIT)
            server.wait()
    finally:
        shutil.rmtree(home)


def _wait(found: PostgreSQL, server: subprocess.Popen[bytes]) -> None:
    while True:
        assert server.poll() is None, (found.sockets / "log").read_text()
        try:
            found.connect().close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
