"""The write points of a process, and what is made to happen at one of them.

Nothing of the product is replaced. Between it and the system stand wrappers around what changes a disk: opening for
writing, write, truncate, fsync, rename, unlink, mkdir, and the statements of an SQLite connection. Each passes a point
before it, one after it, and a write one in its middle, where half of the bytes are written. A point has the label of
the file that it is about, by its path, or by the descriptor's (/proc/self/fd).

At the chosen point the process kills itself (SIGKILL), or the operation fails as on a full or a read-only disk. What
SQLite writes by itself is reached through the kernel: a file size limit makes the commit's own write to the write-ahead
log fail, or ends the process in the middle of it (SIGXFSZ, which ends it as SIGKILL would).
"""

import builtins
import errno
import io
import json
import os
import re
import resource
import signal
import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from tests.crash.plans import Plan

READONLY_SECONDS: Final = 1.0
"""How long a read-only disk stays so."""

_TORN = 1000
"""Bytes of a commit that reach the write-ahead log before the process ends; a page takes more than 4,096."""

_LABELS: Final = tuple(
    (re.compile(pattern), label)
    for pattern, label in (
        (r"tenants/[^/]+/journal(/.*)?", "journal"),
        (r"tenants/[^/]+/outbox(/.*)?", "outbox"),
        (r"tenants/[^/]+/adapters/\.?latest\.json.*", "latest"),
        (r"tenants/[^/]+/adapters(/.*)?", "adapter"),
        (r"tenants/[^/]+/marks(/.*)?", "marks"),
        (r"tenants/[^/]+/cache/index.*", "cache-index"),
        (r"tenants/[^/]+/cache(/.*)?", "cache"),
        (r"tenants/[^/]+/\.?node\.json.*", "node"),
        (r"tenants/[^/]+/\.?secret.*", "secret"),
        (r"tenants/[^/]+/.*\.log", "log"),
        (r"tenants/[^/]+/lock", "lock"),
        (r"tenants/[^/]+", "home"),
        (r"populations/marks(/.*)?", "account-marks"),
        (r"populations/.*", "ledger"),
        (r"server/state/\.?checkpoint\..*", "checkpoint"),
        (r"server/state/history\..*", "history"),
        (r"server/state/\.?adapter\..*", "global-adapter"),
        (r"server/state/\.?status\..*", "status"),
        (r"server/state/.*\.log", "log"),
        (r"server/state", "state"),
        (r"server/lock", "lock"),
        (r"(tenants|server|populations)(/.*)?", "other"),
    )
)
_READONLY_TEXT = "attempt to write a readonly database"
_FULL_TEXT = "database or disk is full"


class Points:
    """Counts the points that this process passes, and makes the plan happen.

    Args:
        root: The federation's folder; only files in it have points.
        plan: What happens; None for nothing.
        notes: A file to which is written which points were passed, and what has happened.
    """

    def __init__(self, root: Path, plan: Plan | None, notes: Path) -> None:
        self._root, self._plan = f"{root}/", plan
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._write, self._readlink, self._kill = os.write, os.readlink, os.kill
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()
        self._fired = False
        self._fails_next = ""
        self._readonly_until = 0.0

    def label_of(self, file: Any) -> str | None:
        """What a path or a descriptor is about; None where it is not of the federation."""
        path = self._readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)
        if not isinstance(path, str) or not path.startswith(self._root):
            return None
        path = os.path.normpath(path)
        rest = path[len(self._root) :].removesuffix(" (deleted)")
        return next((label for pattern, label in _LABELS if pattern.fullmatch(rest)), None)

    def due(self, point: str) -> bool:
        """Pass a point; True where the plan's moment has come."""
        with self._lock:
            self._passed[point] += 1
            if self._passed[point] == 1:
                self._note(seen=point)
            plan = self._plan
            return (
                plan is not None and not self._fired and plan.point == point and self._passed[point] >= plan.occurrence
            )

    def reach(self, point: str) -> None:
        """Pass a point; what is planned for it happens."""
        if self.due(point):
            self.happen(point)

    def happen(self, point: str) -> None:
        """Do what is planned."""
        assert self._plan is not None
        self.fired(point)
        if self._plan.action == "kill":
            self._kill(os.getpid(), signal.SIGKILL)
        if self._plan.action == "readonly":
            self._readonly_until = time.monotonic() + READONLY_SECONDS
        raise self.error()

    def fired(self, point: str) -> None:
        """Take note that the plan has been carried out."""
        self._fired = True
        self._note(fired=point, at=time.time())

    def tries(self, point: str) -> None:
        """Take note that the process may end here without another word."""
        self._note(tried=point)

    def error(self) -> OSError:
        """How the system would say it."""
        number = errno.EROFS if self._plan is not None and self._plan.action == "readonly" else errno.ENOSPC
        return OSError(number, os.strerror(number))

    @property
    def kills(self) -> bool:
        """Whether the plan is a kill."""
        return self._plan is not None and self._plan.action == "kill"

    @property
    def readonly(self) -> bool:
        """Whether the disk is read-only at this moment."""
        return time.monotonic() < self._readonly_until

    @contextmanager
    def around(self, label: str, operation: str) -> Iterator[None]:
        """An operation on a file with a label."""
        if self.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self.reach(f"{label}:{operation}:before")
        yield
        self.reach(f"{label}:{operation}:after")

    def write(self, label: str, data: memoryview, write: Callable[[memoryview], int | None]) -> int | None:
        """A write, with a point in its middle; as in a system, what does not fit any more fails the next one."""
        if self._fails_next == label:
            self._fails_next = ""
            raise self.error()
        with self.around(label, "write"):
            if not self.due(f"{label}:write:half"):
                return write(data)
            written = write(data[: len(data) // 2])
            if self.kills:
                self.happen(f"{label}:write:half")
            self.fired(f"{label}:write:half")
            self._fails_next = label
            return written

    def _note(self, **values: object) -> None:
        self._write(self._notes, f"{json.dumps(values)}\n".encode())


class _WatchedFile(io.FileIO):
    """What Python's buffered files write through."""

    points: Points
    label: str

    def write(self, data: Any, /) -> int:
        return self.points.write(self.label, memoryview(data).cast("B"), super().write) or 0

    def truncate(self, size: int | None = None, /) -> int:
        with self.points.around(self.label, "truncate"):
            return super().truncate(size)


def watch_files(points: Points) -> None:
    """Put the wrappers for files into place, for the rest of this process.

    Args:
        points: Is told of every operation.
    """
    _watch_open(points)
    _watch_descriptors(points)
    for name in ("unlink", "remove", "mkdir"):
        setattr(os, name, _on_path(points, getattr(os, name), "unlink" if name == "remove" else name, 0))
    for name in ("replace", "rename"):
        setattr(os, name, _on_path(points, getattr(os, name), "rename", 1))


def _on_path(points: Points, original: Callable[..., Any], operation: str, place: int) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        label = points.label_of(arguments[place])
        if label is None:
            return original(*arguments, **options)
        with points.around(label, operation):
            return original(*arguments, **options)

    return watched


def _watch_descriptors(points: Points) -> None:
    fsync, ftruncate, os_open = os.fsync, os.ftruncate, os.open

    def watched_fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        label = points.label_of(number)
        if label is None:
            return fsync(number)
        with points.around(label, "fsync-folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "fsync"):
            return fsync(number)

    def watched_ftruncate(file: int, length: int) -> None:
        label = points.label_of(file)
        if label is None:
            return ftruncate(file, length)
        with points.around(label, "truncate"):
            return ftruncate(file, length)

    def watched_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        label = points.label_of(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
        if label is None:
            return os_open(path, flags, mode, dir_fd=dir_fd)
        with points.around(label, "open"):
            return os_open(path, flags, mode, dir_fd=dir_fd)

    for name, watched in (("fsync", watched_fsync), ("ftruncate", watched_ftruncate), ("open", watched_open)):
        setattr(os, name, watched)


def _watch_open(points: Points) -> None:
    original = io.open

    def watched(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        label = points.label_of(file) if set(mode) & set("wax+") else None
        if label is None:
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        plain = mode.replace("b", "").replace("t", "")
        if isinstance(file, int):
            raw = _WatchedFile(file, plain, closefd, opener)
        else:
            with points.around(label, "open"):
                raw = _WatchedFile(file, plain, closefd, opener)
        raw.points, raw.label = points, label
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    for module in (io, builtins):
        setattr(module, "open", watched)  # noqa: B010


def watch_ledger(points: Points) -> None:
    """Put the wrapper for SQLite into place: connections that write pass points around every statement that writes.

    Args:
        points: Is told of every statement.
    """
    connect = sqlite3.connect

    class Watched(_WatchedConnection):
        pass

    Watched.points = points

    def watched(database: Any, *arguments: Any, uri: bool = False, **options: Any) -> sqlite3.Connection:
        if uri or points.label_of(database) is None:  # Readers open by URI.
            return cast(sqlite3.Connection, connect(database, *arguments, uri=uri, **options))
        found: Watched = connect(database, *arguments, factory=Watched, **options)
        found.log = Path(f"{database}-wal")
        return found

    setattr(sqlite3, "connect", watched)  # noqa: B010


class _WatchedConnection(sqlite3.Connection):
    points: Points
    log: Path
    _last = "nothing"

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """As ever, with points before and after."""
        name = self._name(sql.split())
        if name is None:
            return super().execute(sql, *parameters)
        if self.points.readonly and name != "rollback":
            raise sqlite3.OperationalError(_READONLY_TEXT)
        before, inside = f"ledger:{name}:before", f"ledger:{name}:inside"
        commits = name.startswith("commit")
        if self.points.due(before):
            if self.points.kills or not commits:
                self._happen(before)
            found = self._fails(before, sql)
        elif commits and self.points.due(inside):
            found = self._ends(inside, sql)
        else:
            found = super().execute(sql, *parameters)
        self.points.reach(f"ledger:{name}:after")
        return found

    def _name(self, words: list[str]) -> str | None:
        """What a statement does; a commit is named after the last table that was written to."""
        match words:
            case ["BEGIN", *_]:
                self._last = "nothing"
                return "begin"
            case ["COMMIT"]:
                return f"commit-{self._last}"
            case ["ROLLBACK"]:
                return "rollback"
            case ["PRAGMA", "journal_mode", *_]:
                return "journal-mode"
            case ["INSERT", "INTO", table, *_] | ["INSERT", "OR", _, "INTO", table, *_] | ["DELETE", "FROM", table, *_]:
                self._last = table
            case ["UPDATE", table, *_]:
                self._last = table
            case _:
                return None
        return f"{words[0].lower()}-{table}"

    def _happen(self, point: str) -> None:
        try:
            self.points.happen(point)
        except OSError as error:
            text = _READONLY_TEXT if error.errno == errno.EROFS else _FULL_TEXT
            raise sqlite3.OperationalError(text) from None

    def _fails(self, point: str, sql: str) -> sqlite3.Cursor:
        """The commit's own write to the log fails; a commit that writes nothing cannot."""
        with _largest_file(0):
            try:
                return super().execute(sql)
            except sqlite3.OperationalError as error:
                failed = error
        self.points.fired(point)
        raise failed

    def _ends(self, point: str, sql: str) -> sqlite3.Cursor:
        """The process ends when its commit has written a part of a page to the log."""
        size = self.log.stat().st_size if self.log.exists() else 0
        self.points.tries(point)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        try:
            with _largest_file(size + _TORN):
                return super().execute(sql)
        finally:
            signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """The kernel lets this process write no file beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
