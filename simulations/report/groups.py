"""Groups of people: how the model treats them, how far apart they are, and what privacy costs each."""

from fedprofile.simulations.report.charts import CATEGORIES, Drawn, Series, bars, dots, over_categories
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import epsilon_text
from fedprofile.simulations.report.focus import GAP_STATISTIC, Focus
from fedprofile.simulations.report.metrics import DRAWN, STATISTICS, gap_label, label, sentence_start
from fedprofile.simulations.report.results import SUPPRESSED
from fedprofile.simulations.report.tables import ByEpsilon, all_epsilons, epsilon_header, estimate_text, named_text

FIGURES = 4
"""Metrics that are drawn for each group column."""
LEVELS = "Every bar is the federation's; the line at its end is the 95 % interval over users and seeds."
PRICES = (
    "With noise minus without, for the same seeds and users, with 95 % intervals. An interval that crosses the dashed "
    "line at zero shows no difference."
)
GAP_NOTE = (
    "A gap is a largest value minus a smallest one and so never below zero: where groups are small, chance alone makes "
    "one. A gap whose interval reaches down to zero is no gap that was found."
)


def group_section(focus: Focus) -> Section | None:
    """How the model treats groups, without noise and at the epsilon that is looked at."""
    figures = [
        _levels(focus, column, metric, f"group-{place}-{number}")
        for place, column in enumerate(focus.results.columns("group"))
        for number, metric in enumerate(_drawn(focus))
    ]
    figures += [_gaps(focus, column, f"gap-{place}") for place, column in enumerate(focus.results.columns("gap"))]
    found = tuple(figure for figure in figures if figure is not None)
    if not found:
        return None
    return Section(
        "groups",
        "Groups of people",
        (LEVELS, GAP_NOTE),
        figures=found,
        more=(*_gap_tables(focus), *_intersections(focus)),
    )


def price_section(focus: Focus) -> Section | None:
    """What privacy costs each group at each epsilon."""
    figures = [
        _prices(focus, column, metric, f"price-{place}-{number}")
        for place, column in enumerate(focus.results.columns("group"))
        for number, metric in enumerate(_drawn(focus))
    ]
    found = tuple(figure for figure in figures if figure is not None)
    more = _gap_prices(focus)
    if not found and not more:
        return None
    return Section("price", "The price of privacy, group by group", (PRICES,), figures=found, more=more)


def _drawn(focus: Focus) -> list[str]:
    there = focus.results.metrics("group")
    return [metric for metric in DRAWN if metric in there][:FIGURES]


def _levels(focus: Focus, column: str, metric: str, key: str) -> Figure | None:
    found = ByEpsilon(focus, focus.plain, all_epsilons(focus), "group", metric, column=column)
    groups = found.groups[:CATEGORIES]
    series = found.series([condition.epsilon for condition in focus.both], groups)
    if not series or not found.shown():
        return None
    name = label(metric)
    title = f"{sentence_start(name)} by {column}"
    description = f"{title}. {_spoken(groups, series)}"
    return Figure(
        title,
        description,
        bars(Drawn(key, description, name), groups, series),
        found.table(f"{title}, with 95 % intervals", column),
    )


def _prices(focus: Focus, column: str, metric: str, key: str) -> Figure | None:
    found = ByEpsilon(focus, focus.plain, reversed(focus.epsilons), "group", metric, column=column, kind="price")
    groups = found.groups[:CATEGORIES]
    series = found.series(reversed(focus.epsilons), groups)
    if not series or not found.shown():
        return None
    name = label(metric)
    title = f"Change of the {name} by {column}"
    description = f"{title}, with noise minus without. {_spoken(groups, series, signed=True)}"
    return Figure(
        title,
        description,
        dots(Drawn(key, description, f"change of {name}"), groups, series, ("", 0.0)),
        found.table(f"{title}, with noise minus without, with 95 % intervals", column),
    )


def _spoken(groups: list[str], series: list[Series], signed: bool = False) -> str:
    """A figure in words."""
    return " ".join(
        f"{sentence_start(one.name)}: "
        + ", ".join(
            f"{group} {found.text(signed) if found else SUPPRESSED}"
            for group, found in zip(groups, one.estimates, strict=True)
        )
        + "."
        for one in series
    )


def _gaps(focus: Focus, column: str, key: str) -> Figure | None:
    epsilons = list(reversed(all_epsilons(focus)))
    series = []
    for metric in focus.gap_metrics:
        found = [
            focus.results.one(focus.plain.at(epsilon), "gap", metric, column=column, statistic=GAP_STATISTIC)
            for epsilon in epsilons
        ]
        if any(found):
            series.append(Series(gap_label(metric).removesuffix(" gap"), found))
    if not series:
        return None
    title = f"Gaps between the groups of {column}"
    names = [epsilon_header(epsilon) for epsilon in epsilons]
    description = f"{title} against epsilon. {_spoken(names, series)}"
    rows = tuple((one.name, *map(estimate_text, one.estimates)) for one in series)
    return Figure(
        title,
        description,
        over_categories(
            Drawn(key, description, "largest difference"),
            [epsilon_text(epsilon) for epsilon in epsilons],
            series,
            "epsilon",
        ),
        Table(f"{title}, largest difference, with 95 % intervals", ("gap", *names), rows),
    )


def _gap_tables(focus: Focus) -> tuple[Table, ...]:
    """Every gap, and the worst group of every metric."""
    epsilons, tables = all_epsilons(focus), []
    for column in focus.results.columns("gap"):
        rows = []
        for statistic in ("difference", "ratio"):
            for metric in focus.results.metrics("gap", statistic):
                found = [
                    focus.results.one(focus.plain.at(epsilon), "gap", metric, column=column, statistic=statistic)
                    for epsilon in epsilons
                ]
                if any(found):
                    rows.append((f"{gap_label(metric)}, {STATISTICS[statistic]}", *map(estimate_text, found)))
        for metric in focus.results.metrics("gap", "worst"):
            worst = [focus.results.worst(focus.plain.at(epsilon), "gap", metric, column=column) for epsilon in epsilons]
            if any(worst):
                rows.append((f"{label(metric)}, worst group", *map(named_text, worst)))
        if rows:
            caption = f"Gaps and worst groups of {column}, with 95 % intervals"
            tables.append(Table(caption, ("what", *map(epsilon_header, epsilons)), tuple(rows)))
    return tuple(tables)


def _gap_prices(focus: Focus) -> tuple[Table, ...]:
    epsilons, rows = list(reversed(focus.epsilons)), []
    for column in focus.results.columns("gap"):
        for metric in focus.results.metrics("gap", GAP_STATISTIC):
            found = [
                focus.results.one(
                    focus.plain.at(epsilon),
                    "gap",
                    metric,
                    column=column,
                    statistic=GAP_STATISTIC,
                    kind="price",
                )
                for epsilon in epsilons
            ]
            if any(found):
                rows.append((f"{gap_label(metric)} of {column}", *(estimate_text(one, signed=True) for one in found)))
    caption = "Change of the gaps (largest difference), with noise minus without"
    return (Table(caption, ("gap", *map(epsilon_header, epsilons)), tuple(rows)),) if rows else ()


def _intersections(focus: Focus) -> tuple[Table, ...]:
    return tuple(
        found.table(f"{sentence_start(label(metric))} by {column}, with 95 % intervals", column)
        for column in focus.results.columns("intersection")
        for metric in focus.results.metrics("intersection")
        if (found := ByEpsilon(focus, focus.plain, all_epsilons(focus), "intersection", metric, column=column)).groups
    )
