"""How users, their labels and their groups are spread over tenants, without small counts.

A count under 20 is not shown. Where it is the only one of its tenant that is not, the tenant's smallest other count is
not shown either: the tenant's total is known from another table, and what is missing would follow from it.
"""

from collections.abc import Mapping

from fedprofile.simulations.report.charts import CATEGORIES, HIDDEN, Drawn, stacked
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.drawing import SERIES
from fedprofile.simulations.report.facts import SMALLEST_COUNT, PartitionPicture, ReportFacts
from fedprofile.simulations.report.results import printable

PARTS = len(SERIES)
"""Labels or values of one figure; more are drawn as the most frequent ones and the rest."""
REST = "all others"

Counts = dict[str, dict[str, int | None]]
"""Tenant -> part -> users; None where it is not to be shown."""


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


def safe_counts(counts: Mapping[str, Mapping[str, int]]) -> Counts:
    """Counts that may be shown.

    Args:
        counts: Tenant -> part -> users.

    Returns:
        The same with None for a count that is small, and for one from which it would follow. A part that a tenant does
        not have counts as 0, which is small.
    """
    parts = dict.fromkeys(printable(part) for found in counts.values() for part in found)
    safe: Counts = {}
    for tenant, found in counts.items():
        clean = {printable(part): count for part, count in found.items()}
        shown = {part: count if (count := clean.get(part, 0)) >= SMALLEST_COUNT else None for part in parts}
        known = [(count, part) for part, count in shown.items() if count is not None]
        if len(shown) - len(known) == 1 and known:
            shown[min(known)[1]] = None
        safe[printable(tenant)] = shown
    return safe


def _figures(picture: PartitionPicture, number: int, several: bool) -> list[Figure]:
    where = f", partition '{printable(picture.name)}'" if several else ""
    found = [_figure(picture.labels, f"Labels of each tenant's users{where}", "label", f"partition-{number}")]
    for place, (column, counts) in enumerate(picture.groups.items()):
        name = printable(column)
        found.append(_figure(counts, f"Users of each tenant by {name}{where}", name, f"partition-{number}-{place}"))
    return [figure for figure in found if figure is not None]


def _figure(counts: Mapping[str, Mapping[str, int]], title: str, what: str, key: str) -> Figure | None:
    safe = safe_counts(counts)
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
