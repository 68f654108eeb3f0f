"""Utility against epsilon: the federation, its tenants alone, and all data in one place."""

from fedprofile.simulations.report.charts import Drawn, Series, over_categories
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import Estimate, epsilon_text
from fedprofile.simulations.report.focus import Focus
from fedprofile.simulations.report.metrics import label, sentence_start
from fedprofile.simulations.report.results import Condition
from fedprofile.simulations.report.tables import all_epsilons, epsilon_header, estimate_text

ARMS = {"alone": "alone", "pooled": "pooled", "bayes": "Bayes rule"}


def utility_section(focus: Focus) -> Section | None:
    """The section, where a metric of the whole model was measured."""
    if focus.utility is None:
        return None
    figures = [_figure(focus, focus.utility, number, name) for number, name in enumerate(_partitions(focus))]
    return Section(
        "utility",
        "Utility against epsilon",
        (
            "Federated: the tenants together, each adding its own noise. Alone: each tenant by itself at the same "
            "epsilon. Pooled: all data in one place.",
        ),
        figures=tuple(figure for figure in figures if figure is not None),
        more=_all_metrics(focus),
    )


def _partitions(focus: Focus) -> list[str]:
    return focus.results.values("partition")


def _figure(focus: Focus, metric: str, number: int, partition: str) -> Figure | None:
    epsilons = list(reversed(all_epsilons(focus)))
    condition = focus.plain.having(partition=partition)
    series = [
        Series(f"federated, {strategy}", _along(focus, condition.having(strategy=strategy), epsilons))
        for strategy in focus.results.values("strategy")
    ]
    for arm, name in ARMS.items():
        others = [focus.results.beside(condition.at(epsilon), arm) for epsilon in epsilons]
        series.append(Series(name, [focus.overall(other) for other in others]))
    series = [one for one in series if any(one.estimates)]
    if not series:
        return None
    name = label(metric)
    several = f", partition '{partition}'" if len(_partitions(focus)) > 1 else ""
    description = f"{sentence_start(name)} from the smallest epsilon to training without noise{several}. " + " ".join(
        f"{one.name}: {_from_to(one, epsilons)}." for one in series
    )
    title = f"{sentence_start(name)} against epsilon{several}"
    rows = tuple((one.name, *map(estimate_text, one.estimates)) for one in series)
    return Figure(
        title,
        description,
        over_categories(
            Drawn(f"utility-{number}", description, name),
            [epsilon_text(epsilon) for epsilon in epsilons],
            series,
            "epsilon",
        ),
        Table(f"{title}, with 95 % intervals", ("way", *map(epsilon_header, epsilons)), rows),
    )


def _along(focus: Focus, condition: Condition, epsilons: list[float]) -> list[Estimate | None]:
    return [focus.overall(condition.at(epsilon)) for epsilon in epsilons]


def _from_to(one: Series, epsilons: list[float]) -> str:
    known = [(epsilon, found) for epsilon, found in zip(epsilons, one.estimates, strict=True) if found]
    ends = dict.fromkeys((known[0], known[-1]))
    return ", ".join(f"{found.text()} at {epsilon_header(epsilon)}" for epsilon, found in ends)


def _all_metrics(focus: Focus) -> tuple[Table, ...]:
    epsilons = all_epsilons(focus)
    rows = []
    for metric in focus.results.metrics("overall"):
        found = [focus.results.one(focus.plain.at(epsilon), "overall", metric) for epsilon in epsilons]
        if any(found):
            rows.append((label(metric), *map(estimate_text, found)))
    caption = "All metrics of the federation over all users"
    return (Table(caption, ("metric", *map(epsilon_header, epsilons)), tuple(rows)),) if rows else ()
