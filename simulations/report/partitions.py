"""How users, their labels and their groups are spread over tenants, without small counts."""

from collections.abc import Mapping

from fedprofile.simulations.report.charts import CATEGORIES, HIDDEN, Drawn, stacked
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.drawing import SERIES
from fedprofile.simulations.report.facts import PartitionPicture, ReportFacts
from fedprofile.simulations.report.results import printable
from fedprofile.simulations.small_counts import SMALLEST_COUNT, Counts, safe_counts

PARTS = len(SERIES)
"""Labels or values of one figure; more are drawn as the most frequent ones and the rest."""
REST = "all others"


def partition_section(facts: ReportFacts) -> Section | None:
    """The section, where there is a picture."""
    figures = [
        figure
        for number, picture in enumerate(facts.partitions)
        for figure in _figures(picture, number, len(facts.partitions) > 1)
    ]
    if not figures:
        return None
    note = (
        f"Users of each tenant. A count under {SMALLEST_COUNT} is left out, and with it another one of the same tenant "
        "where it would follow from the rest."
    )
    return Section("partition", "How people are spread over tenants", (note,), figures=tuple(figures), epsilons=False)


def _figures(picture: PartitionPicture, number: int, several: bool) -> list[Figure]:
    where = f", partition '{printable(picture.name)}'" if several else ""
    found = [_figure(picture.labels, f"Labels of each tenant's users{where}", "label", f"partition-{number}")]
    for place, (column, counts) in enumerate(picture.groups.items()):
        name = printable(column)
        found.append(_figure(counts, f"Users of each tenant by {name}{where}", name, f"partition-{number}-{place}"))
    return [figure for figure in found if figure is not None]


def _figure(counts: Mapping[str, Mapping[str, int | None]], title: str, what: str, key: str) -> Figure | None:
    safe = safe_counts(
        {printable(tenant): {printable(part): n for part, n in found.items()} for tenant, found in counts.items()}
    )
    if not safe:
        return None
    tenants = sorted(safe, key=lambda tenant: -_shown(safe[tenant]))
    drawn = tenants[:CATEGORIES]
    parts = list(next(iter(safe.values())))
    hidden = sum(count is None for found in safe.values() for count in found.values())
    description = (
        f"{title}: {len(tenants)} tenants and {len(parts)} values of {what}. The largest is {tenants[0]}, the smallest "
        f"{tenants[-1]}, by the counts that are shown; {hidden} counts are not."
    )
    if len(drawn) < len(tenants):
        description += f" The {len(drawn)} largest are drawn; the table has all."
    rows = tuple(
        (tenant, *(HIDDEN if (count := safe[tenant][part]) is None else f"{count}" for part in parts))
        for tenant in tenants
    )
    return Figure(
        title,
        description,
        stacked(Drawn(key, description, "users"), drawn, _columns(safe, drawn, parts)),
        Table(title, ("tenant", *parts), rows),
    )


def _columns(safe: Counts, tenants: list[str], parts: list[str]) -> dict[str, list[int | None]]:
    if len(parts) <= PARTS:
        return {part: [safe[tenant][part] for tenant in tenants] for part in parts}
    frequent = sorted(parts, key=lambda part: -sum(found[part] or 0 for found in safe.values()))
    first, rest = frequent[: PARTS - 1], frequent[PARTS - 1 :]
    columns = {part: [safe[tenant][part] for tenant in tenants] for part in first}
    columns[REST] = [sum(safe[tenant][part] or 0 for part in rest) for tenant in tenants]
    return columns


def _shown(found: Mapping[str, int | None]) -> int:
    return sum(count or 0 for count in found.values())
