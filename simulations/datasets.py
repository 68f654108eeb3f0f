"""Real data sets, read from a folder as their owner published them and laid out as tenants.

Each adapter says which column is the tenant, who the user is, what must be left out and why, and writes one folder
of files for each tenant, so that what reads them is the same code that reads a deployed tenant's data.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedprofile.common.errors import ConfigError, DataError

SHOPPERS_FILE = Path("online_shoppers") / "online_shoppers_intention.csv"
SHOPPERS_SMALLEST = 240
"""Rows that a traffic type needs to be a tenant."""


@dataclass(frozen=True)
class TenantRows:
    """One tenant's rows.

    Args:
        name: Of the tenant.
        columns: The header.
        rows: In the file's order.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def write(self, path: Path) -> None:
        """Write the rows as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.rows)


def online_shoppers(data_dir: Path) -> list[TenantRows]:
    """UCI 468, online shoppers purchasing intention (Sakar et al. 2018), one tenant per `TrafficType`.

    A "user" here is one session: the data set has no person. Exact duplicate rows are removed first, `PageValues` is
    left out because it is computed from completed purchases, and a traffic type with fewer than 240 rows is no
    tenant. Labels become "no" and "yes".

    Args:
        data_dir: The folder that holds `online_shoppers/` or the CSV file itself.

    Returns:
        Tenants, largest first.

    Raises:
        DataError: The file is not there or not the published one.
    """
    path = next((path for path in (data_dir / SHOPPERS_FILE, data_dir / SHOPPERS_FILE.name) if path.is_file()), None)
    if path is None:
        raise DataError(f"{data_dir}: '{SHOPPERS_FILE}' is not in it; download UCI data set 468 there.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader)
        distinct = dict.fromkeys(map(tuple, reader))
    left_out = {"PageValues", "Revenue"}
    if not {*left_out, "TrafficType"} <= set(header):
        raise DataError(f"{path}: has not the columns of UCI data set 468.")
    kept = [place for place, name in enumerate(header) if name not in left_out]
    tenant, label = header.index("TrafficType"), header.index("Revenue")
    sessions: dict[str, list[tuple[str, ...]]] = {}
    for number, row in enumerate(distinct):
        session = (f"session-{number:05d}", *(row[place] for place in kept), "yes" if row[label] == "TRUE" else "no")
        sessions.setdefault(row[tenant], []).append(session)
    columns = ("session", *(header[place] for place in kept), "bought")
    large = [(kind, rows) for kind, rows in sessions.items() if len(rows) >= SHOPPERS_SMALLEST]
    large.sort(key=lambda item: -len(item[1]))
    return [TenantRows(f"traffic-{int(kind):02d}", columns, tuple(rows)) for kind, rows in large]


DATASETS = {"online-shoppers": online_shoppers}


def load_dataset(name: str, data_dir: Path) -> Iterator[TenantRows]:
    """A data set by name.

    Args:
        name: One of `DATASETS`.
        data_dir: The folder as its owner published it.

    Returns:
        Its tenants.

    Raises:
        ConfigError: There is no such data set here.
        DataError: The folder does not hold it.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset '{name}' is not known; choose from: {', '.join(sorted(DATASETS))}.")
    return iter(DATASETS[name](data_dir))
