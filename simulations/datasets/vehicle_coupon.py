"""UCI 603, in-vehicle coupon recommendation (Wang et al. 2017): which offers are accepted?

A user is one respondent of the survey: a run of consecutive rows with one profile. The history is the respondent's
earlier offers and answers, in the file's order; the file has no clock, and `time` is made of that order alone. Labels
are stated intent. With a coupon's kind as the tenant, the same respondent is at several tenants under the same id.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from fedprofile.common.config import Frozen, validate
from fedprofile.simulations.datasets.tenant_rows import (
    Adapter,
    TenantRows,
    as_tenants,
    find_file,
    read_table,
    tenant_name,
)

FILE = Path("vehicle_coupon") / "in-vehicle-coupon-recommendation.csv"
SOURCE = "UCI data set 603"

PROFILE = (
    "gender",
    "age",
    "maritalStatus",
    "has_children",
    "education",
    "occupation",
    "income",
    "car",
    "Bar",
    "CoffeeHouse",
    "CarryAway",
    "RestaurantLessThan20",
    "Restaurant20To50",
)
"""A new respondent starts where one of these changes."""

GROUPS = ("gender", "age", "income", "occupation", "maritalStatus")
LEFT_OUT = {
    "car": "empty in 99 of 100 rows",
    "toCoupon_GEQ5min": "the same in every row",
    "direction_opp": "1 - direction_same",
    "Y": "the label, under another name",
}
OFFER = (
    *("destination", "passanger", "weather", "temperature", "time", "coupon", "expiration"),
    *("toCoupon_GEQ15min", "toCoupon_GEQ25min", "direction_same"),
)
FIRST = datetime(2020, 1, 1)


class Options(Frozen):
    """Of the data set."""

    tenant: Literal["coupon", "occupation"] = "coupon"
    """Five tenants by the kind of coupon, with most respondents at all of them; or the respondents of each occupation
    that has at least 20 of them."""


def read(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """The offers. Respondents are told apart first and exact duplicate rows removed then.

    Args:
        data_dir: The folder that holds `vehicle_coupon/` or the CSV file itself.
        options: See `Options`.

    Returns:
        Tenants, largest first.

    Raises:
        ConfigError: An option is not one.
        DataError: The file is not there or not the published one.
    """
    chosen = validate(dict(options), Options, "data.options")
    table = read_table(find_file(data_dir, FILE, SOURCE), [*PROFILE, *OFFER, *LEFT_OUT], SOURCE)
    again = table.duplicated()
    profiles = table[list(PROFILE)]
    number = (profiles != profiles.shift()).any(axis=1).cumsum()
    table = table.assign(
        respondent=number.map("respondent-{:03d}".format),
        offered=[(FIRST + timedelta(minutes=place)).isoformat() for place in range(len(table))],
        answer=table["Y"].map({"0": "declined", "1": "accepted"}),
        tenant=table[chosen.tenant],
    )
    table = table[~again].rename(columns={"time": "hour"})
    kept = [name for name in table.columns if name not in {*LEFT_OUT, "respondent", "answer"}]
    names = {value: f"{chosen.tenant}-{_spelt(value)}" for value in table["tenant"].unique()}
    return as_tenants(table[["respondent", *kept, "answer"]], "tenant", names)


def _spelt(value: str) -> str:
    return tenant_name(value.replace("(<20)", " below 20").replace("&", " and "))


ADAPTER = Adapter("advertising-response", "a respondent", GROUPS, LEFT_OUT, read)
