"""Tenants: each beside the global value, how unequal they are, and gaps between groups that the average hides."""

from fedprofile.simulations.report.charts import CATEGORIES, Drawn, dots
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.focus import GAP_STATISTIC, Focus
from fedprofile.simulations.report.metrics import STATISTICS, gap_label, label, sentence_start
from fedprofile.simulations.report.tables import (
    ByEpsilon,
    all_epsilons,
    entry_text,
    epsilon_header,
    estimate_text,
    named_text,
)


def tenant_section(focus: Focus) -> Section | None:
    """The section, where tenants were measured."""
    figures = [_values(focus)]
    figures += [
        _gaps(focus, column, focus.gap_metric, f"client-gap-{place}")
        for place, column in enumerate(focus.results.columns("client_gap"))
        if focus.gap_metric is not None
    ]
    found = tuple(figure for figure in figures if figure is not None)
    tables = _spread(focus)
    if not found and not tables:
        return None
    note = "Each dot is one tenant's own evaluation users; the dashed line is all of them together."
    return Section("tenants", "Tenants beside the global value", (note,), figures=found, more=tables)


def _values(focus: Focus) -> Figure | None:
    if focus.utility is None:
        return None
    found = ByEpsilon(focus, focus.plain, all_epsilons(focus), "tenant", focus.utility)
    whole = focus.overall(focus.private)
    if not found.shown():
        return None
    title = f"{sentence_start(label(focus.utility))} of each tenant"
    return _figure(focus, found, title, "tenants", label(focus.utility), whole)


def _gaps(focus: Focus, column: str, metric: str, key: str) -> Figure | None:
    found = ByEpsilon(
        focus, focus.plain, all_epsilons(focus), "client_gap", metric, column=column, statistic=GAP_STATISTIC
    )
    if not found.shown():
        return None
    whole = focus.results.one(focus.private, "gap", metric, column=column, statistic=GAP_STATISTIC)
    title = f"{sentence_start(gap_label(metric))} of {column} at each tenant"
    return _figure(focus, found, title, key, gap_label(metric), whole)


def _figure(focus: Focus, found: ByEpsilon, title: str, key: str, name: str, whole: Estimate | None) -> Figure | None:
    """Tenants from the smallest value to the largest at the epsilon that is looked at."""
    epsilon = focus.private.epsilon
    ordered = found.sorted_groups(epsilon)
    groups = ordered[:CATEGORIES]
    series = found.series([condition.epsilon for condition in focus.both], groups)
    if not groups or not series:
        return None
    at = epsilon_header(epsilon)
    (at_epsilon,) = found.series([epsilon], ordered)
    lowest, highest = at_epsilon.estimates[0], at_epsilon.estimates[-1]
    description = (
        f"{title}, one dot each. At {at} {len(ordered)} tenants lie between {estimate_text(lowest)} ({ordered[0]}) and "
        f"{estimate_text(highest)} ({ordered[-1]}); all users together have {estimate_text(whole)}."
    )
    if len(groups) < len(ordered):
        description += f" The {len(groups)} smallest are drawn; the table has all."
    line = None if whole is None else (f"all users, {at}", whole.value)
    return Figure(
        title,
        description,
        dots(Drawn(key, description, name), groups, series, line),
        found.table(f"{title}, with 95 % intervals", "tenant"),
    )


def _spread(focus: Focus) -> tuple[Table, ...]:
    """Statistics over tenants: of each metric, and of the tenants' own gaps."""
    epsilons, rows = all_epsilons(focus), []
    conditions = [focus.plain.at(epsilon) for epsilon in epsilons]
    for scope, statistics in (("spread", focus.results.statistics("spread")), ("client_gap", ["mean", "worst"])):
        for column in focus.results.columns(scope):
            for statistic in statistics:
                for metric in focus.results.metrics(scope, statistic):
                    found = [
                        next(iter(focus.results.find(one, scope, metric, column=column, statistic=statistic)), None)
                        for one in conditions
                    ]
                    text = named_text if statistic == "worst" else entry_text
                    name = gap_label(metric) if scope == "client_gap" else label(metric)
                    of = f" of {column}" if column else ""
                    if any(found):
                        rows.append((f"{name}{of}, {STATISTICS.get(statistic, statistic)}", *map(text, found)))
    caption = "How unequal tenants are, with 95 % intervals"
    return (Table(caption, ("what", *map(epsilon_header, epsilons)), tuple(rows)),) if rows else ()
