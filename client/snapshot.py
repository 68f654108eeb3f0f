"""One state of the data for a whole run: the rows that the card needs, kept in the tenant's directory.

With `[reading] snapshot = "run"` the first reading's examples are written here, and every later round and restart of
that run takes them from here, whatever was added to the source or changed in it. Who has left the source leaves the
snapshot in the next round as well: the promise that users who are gone are used no more stands above the promise of one
state. Whether a user is still there is decided by that user's own rows.

On disk: one Parquet file that only its owner can read, a row for each user with that user's examples, and each event
once. It is replaced as a whole, so that after a kill there is the old one, the new one or none; what was half written
is never read and is deleted. It holds nothing of columns that the card does not need, and goes when the run is over or
when another run begins.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedprofile.client.directory import sync_folder, write_private
from fedprofile.client.registry import source_identities
from fedprofile.client.segments import SegmentPlan
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example, Row
from fedprofile.common.tenant import TenantFile

_FORMAT = b"fedprofile.snapshot.1"


def run_digest(tenant: TenantFile, plan: SegmentPlan, folder: Path) -> str:
    """What a snapshot is of: the run, with its card, and where its rows come from. A change of any is another one.

    Args:
        tenant: The tenant file.
        plan: Of the run's segment.
        folder: What the tenant file's paths count from.

    Returns:
        A SHA-256, in which no password goes.

    Raises:
        DataError: A source's URL is not one.
    """
    sources = [source for source in (tenant.source, tenant.events) if source is not None]
    identities = [source_identities(source, folder) for source in sources]
    whole = [plan.digest, identities, tenant.columns.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


class Snapshot:
    """The examples of one run.

    Args:
        folder: Where the file lies; nothing else may be in it.
        run: What it is valid for; a snapshot of anything else is as none.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder, self._path, self._run = folder, folder / "examples.parquet", run.encode()

    def read(self) -> list[Example] | None:
        """The examples, in their first order; None where there are none of this run, whole and readable."""
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(self._path)
        except (OSError, pyarrow.ArrowException):
            return None
        if (table.schema.metadata or {}).get(_FORMAT) != self._run:
            return None
        found = [made for batch in table.to_batches(1024) for user in batch.to_pylist() for made in _examples(user)]
        found.sort(key=lambda placed: placed[0])
        return [example for _, example in found]

    def write(self, examples: Iterable[Example]) -> None:
        """Replace what is there.

        Args:
            examples: Of the run.

        Raises:
            ConfigError: It cannot be written.
        """
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(_users(examples)).replace_schema_metadata({_FORMAT: self._run})
        data = io.BytesIO()
        pyarrow.parquet.write_table(table, data)
        try:
            self._sweep()
            write_private(self._path, data.getvalue())
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: the run's snapshot cannot be written ({error.strerror}); make room, or set "
                'reading.snapshot = "round" in tenant.toml.'
            ) from error

    def remove(self) -> None:
        """Delete it, and what was half written."""
        self._path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Delete what a killed process left."""
        for left in self._folder.glob(".*"):
            left.unlink(missing_ok=True)
        if self._folder.is_dir():
            sync_folder(self._folder)


def _users(examples: Iterable[Example]) -> list[dict[str, Any]]:
    """One row a user, in which each event stands once, though it is in many histories."""
    rows: dict[str, dict[str, Any]] = {}
    numbers: dict[str, dict[int, int]] = {}
    for place, example in enumerate(examples):
        user = rows.setdefault(example.user, {"user": example.user, "events": [], "examples": []})
        number = numbers.setdefault(example.user, {})
        for event in example.events:
            if id(event) not in number:
                number[id(event)] = len(user["events"])
                user["events"].append(_stored(event))
        rest = {one.name: getattr(example, one.name) for one in fields(Example) if one.name not in ("user", "events")}
        history = [number[id(event)] for event in example.events]
        user["examples"].append({**rest, "row": _stored(example.row), "place": place, "history": history})
    return list(rows.values())


def _examples(user: Mapping[str, Any]) -> Iterable[tuple[int, Example]]:
    events = [_restored(event) for event in user["events"]]
    for one in user["examples"]:
        place, history = one.pop("place"), one.pop("history")
        row = _restored(one.pop("row"))
        yield place, Example(user=user["user"], row=row, events=tuple(events[number] for number in history), **one)


def _stored(row: Row) -> dict[str, Any] | None:
    """Parquet has no record without a column."""
    return dict(row) or None


def _restored(row: Mapping[str, Any] | None) -> Row:
    """Parquet gives a vector back as a list."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in (row or {}).items()}
