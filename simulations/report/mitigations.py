"""Mitigations compared: what each does to the gaps between groups and to the whole model."""

from fedprofile.simulations.report.charts import Drawn, Series, dots
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.focus import GAP_STATISTIC, Focus
from fedprofile.simulations.report.metrics import GAPS, label, sentence_start
from fedprofile.simulations.report.results import NO_MITIGATION, Condition
from fedprofile.simulations.report.tables import all_epsilons, epsilon_header, estimate_text

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
        found = {name: focus.overall(focus.private.having(mitigation=name)) for name in names}
        figures.append(_figure(focus, label(focus.utility), "", "utility", found))
    for place, column in enumerate(focus.results.columns("gap")):
        for number, metric in enumerate(
            metric for metric in GAPS if metric in focus.results.metrics("gap", GAP_STATISTIC)
        ):
            found = {name: _gap(focus, focus.private, name, column, metric) for name in names}
            figures.append(_figure(focus, label(metric), f" of {column}", f"{place}-{number}", found))
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
    at, before = epsilon_header(focus.private.epsilon), known.get(NO_MITIGATION)
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
            caption = f"{sentence_start(label(focus.gap_metric))} of {column} by mitigation and epsilon"
            tables.append(_table(caption, epsilons, rows))
    return tuple(tables)


def _table(caption: str, epsilons: list[float], rows: list[tuple[str, list[Estimate | None]]]) -> Table:
    header = ("mitigation", *(epsilon_header(epsilon) for epsilon in epsilons))
    return Table(caption, header, tuple((name, *map(estimate_text, found)) for name, found in rows))
