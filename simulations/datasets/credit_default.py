"""UCI 350, default of credit card clients (Yeh and Lien 2009): who does not pay next month?

A user is one client, who is one row. The history is six months, April to September 2005, each with a status; bills
and payments are numeric columns. Two readings are the community's and not the publisher's: status 0 is revolving
credit, -2 is no use. EDUCATION 0, 5 and 6 and MARRIAGE 0 are undocumented and become "other".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fedprofile.common.config import Frozen, validate
from fedprofile.simulations.datasets.tenant_rows import (
    Adapter,
    TenantRows,
    as_tenants,
    bands,
    find_file,
    read_table,
    tenant_name,
)

FILE = Path("credit_default") / "credit-card-clients.csv"
SOURCE = "UCI data set 350"

MONTHS = {
    "PAY_6": ("2005-04-30", "April"),
    "PAY_5": ("2005-05-31", "May"),
    "PAY_4": ("2005-06-30", "June"),
    "PAY_3": ("2005-07-31", "July"),
    "PAY_2": ("2005-08-31", "August"),
    "PAY_0": ("2005-09-30", "September"),
}
"""Status column -> the month's last day and name; there is no PAY_1."""
ASKED = "2005-10-01"

AMOUNTS = [f"{kind}{month}" for kind in ("BILL_AMT", "PAY_AMT") for month in range(1, 7)]
SEX = {"1": "male", "2": "female"}
MARRIAGE = {"1": "married", "2": "single"}
EDUCATION = {"1": "graduate school", "2": "university", "3": "high school"}
AGES = (29, 39, 49, 59)
LIMITS = (50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000)
LEFT_OUT = {"default payment": "the label, under another name"}


class Options(Frozen):
    """Of the data set."""

    tenant: Literal["education", "limit"] = "education"
    """Four tenants by EDUCATION, or eight by a band of LIMIT_BAL."""


def read(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """The clients. Exact duplicate rows are removed first.

    Args:
        data_dir: The folder that holds `credit_default/` or the CSV file itself.
        options: See `Options`.

    Returns:
        Tenants, largest first.

    Raises:
        ConfigError: An option is not one.
        DataError: The file is not there or not the published one.
    """
    chosen = validate(dict(options), Options, "data.options")
    known = ["LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", *MONTHS, *AMOUNTS, *LEFT_OUT]
    table = read_table(find_file(data_dir, FILE, SOURCE), known, SOURCE).drop_duplicates(ignore_index=True)
    education = table["EDUCATION"].map(EDUCATION).fillna("other")
    limits = bands(table["LIMIT_BAL"].astype(int), LIMITS)
    visits = pd.DataFrame(
        {
            "client": [f"client-{number:05d}" for number in range(len(table))],
            "time": ASKED,
            **{name: table[name] for name in ("LIMIT_BAL", *MONTHS, *AMOUNTS)},
            "EDUCATION": education,
            "SEX": table["SEX"].map(SEX),
            "AGE": bands(table["AGE"].astype(int), AGES),
            "MARRIAGE": table["MARRIAGE"].map(MARRIAGE).fillna("other"),
            "defaulted": table["default payment"].map({"0": "no", "1": "yes"}),
            "tenant": education if chosen.tenant == "education" else limits,
        }
    )
    events = pd.concat(
        [
            pd.DataFrame(
                {
                    "client": visits["client"],
                    "time": day,
                    "month": month,
                    "status": table[column].astype(int).map(_status),
                    "tenant": visits["tenant"],
                }
            )
            for column, (day, month) in MONTHS.items()
        ]
    )
    prefix = "education" if chosen.tenant == "education" else "limit"
    names = {value: _name(prefix, value) for value in visits["tenant"].unique()}
    return as_tenants(visits, "tenant", names, events)


def _status(code: int) -> str:
    if code > 0:
        return f"{code} months late" if code > 1 else "1 month late"
    return {0: "revolving", -1: "paid duly", -2: "no use"}[code]


def _name(prefix: str, value: str) -> str:
    return f"{prefix}-{tenant_name(value.replace('<=', 'to ').replace('>', 'above '))}"


ADAPTER = Adapter("credit-risk", "a client", ("SEX", "AGE", "MARRIAGE"), LEFT_OUT, read)
