"""UCI 468, online shoppers purchasing intention (Sakar et al. 2018): which sessions end in a purchase?

A "user" here is one session: the data set has no person, and no group of persons. One tenant per `TrafficType`; a
type with fewer than 240 rows is no tenant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprofile.common.config import Frozen, validate
from fedprofile.simulations.datasets.tenant_rows import Adapter, TenantRows, find_file, read_table

FILE = Path("online_shoppers") / "online_shoppers_intention.csv"
SOURCE = "UCI data set 468"

SMALLEST = 240
"""Rows that a traffic type needs to be a tenant."""

LEFT_OUT = {"PageValues": "computed from completed purchases", "Revenue": "the label, under another name"}


class Options(Frozen):
    """There are none."""


def read(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """The sessions. Exact duplicate rows are removed first; labels become "no" and "yes".

    Args:
        data_dir: The folder that holds `online_shoppers/` or the CSV file itself.
        options: None.

    Returns:
        Tenants, largest first.

    Raises:
        DataError: The file is not there or not the published one.
    """
    validate(dict(options), Options, "data.options")
    table = read_table(find_file(data_dir, FILE, SOURCE), [*LEFT_OUT, "TrafficType"], SOURCE)
    table = table.drop_duplicates(ignore_index=True)
    bought = table["Revenue"].map({"TRUE": "yes"}).fillna("no")
    sessions = [f"session-{number:05d}" for number in range(len(table))]
    visits = table.drop(columns=list(LEFT_OUT))
    visits.insert(0, "session", sessions)
    visits = visits.assign(bought=bought)
    kinds = visits["TrafficType"].value_counts()
    large = kinds[kinds >= SMALLEST].index
    return [
        TenantRows(
            f"traffic-{int(kind):02d}",
            tuple(visits.columns),
            tuple(visits[visits["TrafficType"] == kind].itertuples(index=False, name=None)),
        )
        for kind in large
    ]


ADAPTER = Adapter("purchase-intention", "a session", (), LEFT_OUT, read)
