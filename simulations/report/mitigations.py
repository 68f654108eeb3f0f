"""Mitigations compared: what each does to the gaps between groups and to the whole model."""

from fedprofile.simulations.report.charts import CATEGORIES, Drawn, Series, dots
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.focus import GAP_STATISTIC, Focus
from fedprofile.simulations.report.metrics import gap_label, label, sentence_start
from fedprofile.simulations.report.results import NO_MITIGATION, Condition
from fedprofile.simulations.report.tables import all_epsilons, entry_text, epsilon_header, estimate_text

NO_NOISE = "none, no noise"
NOTE = (
    "Each mitigation under the same condition as training without one. The difference to it is made from the two "
    "intervals as if they were independent, which makes its interval rather too wide. The dashed line is training "
    "without one."
)


def mitigation_section(focus: Focus) -> Section | None:
    """The section, where there is a mitigation."""
    names = focus.results.values("mitigation")
    if len(names) < 2:
        return None
    figures = []
    if focus.utility is not None:
        found = {name: focus.overall(focus.mitigated.having(mitigation=name)) for name in names}
        figures.append(_figure(focus, label(focus.utility), "", "utility", found))
    if focus.gap_metric is not None:
        for place, column in enumerate(focus.results.columns("gap")):
            found = {name: _gap(focus, focus.mitigated, name, column, focus.gap_metric) for name in names}
            figures.append(_figure(focus, gap_label(focus.gap_metric), f" of {column}", f"gap-{place}", found))
    if focus.group_metric is not None:
        for place, column in enumerate(focus.results.columns("group")):
            figures.append(_groups(focus, names, focus.group_metric, column, f"mitigation-group-{place}"))
    return Section(
        "mitigations",
        "Mitigations compared",
        (NOTE,),
        figures=tuple(filter(None, figures)),
        more=_all_epsilons(focus, names),
    )


def _gap(focus: Focus, condition: Condition, mitigation: str, column: str, metric: str) -> Estimate | None:
    where = condition.having(mitigation=mitigation)
    return focus.results.one(where, "gap", metric, column=column, statistic=GAP_STATISTIC)


def _figure(focus: Focus, name: str, of: str, key: str, found: dict[str, Estimate | None]) -> Figure | None:
    """One dot for each mitigation, beside a line at none."""
    title = f"{sentence_start(name)}{of} with each mitigation"
    known = {name: estimate for name, estimate in found.items() if estimate is not None}
    if len(known) < 2:
        return None
    at, before = epsilon_header(focus.mitigated.epsilon), known.get(NO_MITIGATION)
    description = (
        f"{title}, at {at}. " + ", ".join(f"{tried} {estimate.text()}" for tried, estimate in known.items()) + "."
    )
    line = None if before is None else ("", before.value)
    rows = tuple(
        (
            tried,
            estimate.text(),
            estimate_text(None if before is None or tried == NO_MITIGATION else estimate.minus(before), signed=True),
        )
        for tried, estimate in known.items()
    )
    return Figure(
        title,
        description,
        dots(
            Drawn(f"mitigation-{key}", description, f"{name}, {at}"),
            list(known),
            [Series(at, list(known.values()))],
            line,
        ),
        Table(f"{title}, at {at}, with 95 % intervals", ("mitigation", "value", "difference to none"), rows),
    )


def _groups(focus: Focus, names: list[str], metric: str, column: str, key: str) -> Figure | None:
    """A metric of each group with each mitigation, and without noise."""
    conditions = {NO_NOISE: focus.plain} | {name: focus.mitigated.having(mitigation=name) for name in names}
    found = {
        name: {entry.group: entry for entry in focus.results.find(condition, "group", metric, column=column)}
        for name, condition in conditions.items()
    }
    groups = list(dict.fromkeys(group for entries in found.values() for group in entries))
    if not any(entry.estimate for entries in found.values() for entry in entries.values()):
        return None
    at = epsilon_header(focus.mitigated.epsilon)
    title = f"{sentence_start(label(metric))} by {column} with each mitigation"
    rows = tuple((group, *(entry_text(entries.get(group)) for entries in found.values())) for group in groups)
    header = (column, *found)
    told = "; ".join(
        f"{row[0]}: " + ", ".join(f"{name} {cell}" for name, cell in zip(header[1:], row[1:], strict=True))
        for row in rows
    )
    description = f"{title}, at {at}. {told}."
    drawn = groups[:CATEGORIES]
    series = [
        Series(name, [entries[group].estimate if group in entries else None for group in drawn])
        for name, entries in found.items()
    ]
    return Figure(
        title,
        description,
        dots(Drawn(key, description, f"{label(metric)}, {at}"), drawn, series),
        Table(f"{title}, at {at}, with 95 % intervals", header, rows),
    )


def _all_epsilons(focus: Focus, names: list[str]) -> tuple[Table, ...]:
    epsilons, tables = all_epsilons(focus), []
    if focus.utility is not None:
        rows = [
            (name, [focus.overall(focus.plain.at(epsilon).having(mitigation=name)) for epsilon in epsilons])
            for name in names
        ]
        tables.append(_table(f"{sentence_start(label(focus.utility))} by mitigation and epsilon", epsilons, rows))
    if focus.gap_metric is not None:
        for column in focus.results.columns("gap"):
            rows = [
                (name, [_gap(focus, focus.plain.at(epsilon), name, column, focus.gap_metric) for epsilon in epsilons])
                for name in names
            ]
            caption = f"{sentence_start(gap_label(focus.gap_metric))} of {column} by mitigation and epsilon"
            tables.append(_table(caption, epsilons, rows))
    return tuple(tables)


def _table(caption: str, epsilons: list[float], rows: list[tuple[str, list[Estimate | None]]]) -> Table:
    header = ("mitigation", *(epsilon_header(epsilon) for epsilon in epsilons))
    return Table(caption, header, tuple((name, *map(estimate_text, found)) for name, found in rows))
