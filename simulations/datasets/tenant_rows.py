"""What an adapter makes of a data set: rows of tenants, written as the files of a deployed tenant.

Each adapter declares what is not in its scenario's card and tenant file: who the user is, what a tenant may be, which
columns are groups, and what is left out and why. Task, text template and numeric columns stand on the card; the group
columns are the tenant file's `columns.group` and `columns.protected`, which the deployed reader keeps out of every
text and feature.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from fedprofile.common.errors import DataError

FEWEST_USERS = 20
"""Of a tenant; one with fewer is left out."""


@dataclass(frozen=True)
class TenantRows:
    """One tenant's rows.

    Args:
        name: Of the tenant.
        columns: The header; the first column is the user.
        rows: The labelled rows, in the file's order.
        event_columns: The header of what came before; empty where there is nothing, or where the labelled rows
            themselves are the history.
        events: What came before.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = field(repr=False)
    event_columns: tuple[str, ...] = ()
    events: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def users(self) -> int:
        """How many users have a labelled row."""
        return len({row[0] for row in self.rows})

    def write(self, folder: Path) -> None:
        """Write `visits.csv` and, where there are events, `events.csv`."""
        _write(folder / "visits.csv", self.columns, self.rows)
        if self.event_columns:
            _write(folder / "events.csv", self.event_columns, self.events)


@dataclass(frozen=True)
class Adapter:
    """A data set by name.

    Args:
        scenario: Folder of `configs/scenarios` whose card it is learnt with.
        user: Who one user is.
        groups: Group columns; of the same value in all of a user's rows, at every tenant.
        left_out: Column of the published files -> why it is in no tenant's data.
        read: From the folder and the options to the tenants.
        tasks: Value of the option `task` -> folder of its card, where there is that option.
        catalogue: The public candidates of `task = "ranking"`, from the folder, where there is that task.
    """

    scenario: str
    user: str
    groups: tuple[str, ...]
    left_out: Mapping[str, str]
    read: Callable[[Path, Mapping[str, Any]], list[TenantRows]] = field(repr=False)
    tasks: Mapping[str, str] = field(default_factory=dict)
    catalogue: Callable[[Path], tuple[str, ...]] | None = field(default=None, repr=False)

    def scenario_of(self, options: Mapping[str, Any]) -> str:
        """The folder of the card for some options, which `read` has checked."""
        return self.tasks.get(options.get("task", ""), self.scenario)


def find_file(data_dir: Path, file: Path, source: str) -> Path:
    """A published file.

    Args:
        data_dir: The folder that holds it, or that holds the data set's own folder.
        file: Its path below the former.
        source: What to download.

    Returns:
        Where it is.

    Raises:
        DataError: It is not there.
    """
    for path in (data_dir / file, data_dir / file.name):
        if path.is_file():
            return path
    raise DataError(f"{data_dir}: '{file}' is not in it; download {source} there.")


def read_table(path: Path, columns: Sequence[str], source: str) -> pd.DataFrame:
    """A published CSV file as text, cell by cell.

    Args:
        path: The file.
        columns: That it must have.
        source: What it should be.

    Returns:
        Its rows.

    Raises:
        DataError: It is another file.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({type(error).__name__}); download {source} again.") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: has not the columns of {source}; '{missing[0]}' is missing.")
    return table


def as_tenants(
    visits: pd.DataFrame, tenant: str, names: Mapping[str, str], events: pd.DataFrame | None = None
) -> list[TenantRows]:
    """Rows by tenant; those with fewer than `FEWEST_USERS` users are left out.

    Args:
        visits: Labelled rows as text; the first column is the user.
        tenant: The column of `visits` and `events` that says whose a row is; it is in no tenant's data.
        names: Value of that column -> the tenant's name.
        events: What came before; its first column is the user.

    Returns:
        Tenants, largest first.
    """
    before = {} if events is None else dict(iter(events.groupby(tenant, sort=False)))
    none = () if events is None else tuple(events.columns.drop(tenant))
    found = [
        TenantRows(
            names[str(value)],
            tuple(rows.columns.drop(tenant)),
            _rows(rows.drop(columns=tenant)),
            none,
            _rows(before[value].drop(columns=tenant)) if value in before else (),
        )
        for value, rows in visits.groupby(tenant, sort=False)
    ]
    found = [rows for rows in found if rows.users >= FEWEST_USERS]
    return sorted(found, key=lambda rows: (-rows.users, rows.name))


def tenant_name(text: str) -> str:
    """A value as a tenant's name.

    >>> tenant_name("Carry out & Take away")
    'carry-out-take-away'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def bands(numbers: pd.Series, ends: Sequence[int]) -> pd.Series:
    """Whole numbers as bands, each up to and with its end.

    >>> bands(pd.Series([20, 21, 70]), [20, 40]).tolist()
    ['<=20', '21-40', '>40']
    """
    labels = [f"<={ends[0]}", *(f"{low + 1}-{high}" for low, high in pairwise(ends)), f">{ends[-1]}"]
    return pd.cut(numbers, [float("-inf"), *ends, float("inf")], labels=labels).astype(str)


def _rows(table: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    return tuple(table.itertuples(index=False, name=None))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
