"""Which conditions and metrics a report is about where there is room for one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.metrics import GAPS, GROUPS, HIGHER, LOWER, UTILITY, better
from fedprofile.simulations.report.results import NO_MITIGATION, Condition, Measured, Results

GAP_STATISTIC = "difference"


@dataclass(frozen=True)
class Focus:
    """What the first page is about.

    Args:
        results: All of them.
        plain: The federation without noise and mitigation, on the first partition with the first strategy.
        epsilons: With noise, smallest first.
        epsilon: The one that is looked at closely: the middle one, the smaller of two; None where there is none.
        utility: The metric of the whole model.
        group_metric: The metric of groups; None where there are none.
        gap_metric: The metric of the gap between groups; None where there is none.
    """

    results: Results
    plain: Condition
    epsilons: tuple[float, ...]
    epsilon: float | None
    utility: str | None
    group_metric: str | None
    gap_metric: str | None

    @property
    def gap_metrics(self) -> tuple[str, ...]:
        """The gaps that are drawn."""
        there = self.results.metrics("gap", GAP_STATISTIC)
        return tuple(metric for metric in GAPS if metric in there) or tuple(filter(None, (self.gap_metric,)))

    @property
    def private(self) -> Condition:
        """The federation at the epsilon that is looked at; without noise where there is none."""
        return self.plain if self.epsilon is None else self.plain.at(self.epsilon)

    @property
    def both(self) -> tuple[Condition, ...]:
        """Without noise and, where there is one, at the epsilon that is looked at."""
        return tuple(dict.fromkeys((self.plain, self.private)))

    @property
    def mitigated(self) -> Condition:
        """Where mitigations are compared: at the epsilon that is looked at, or at the first where there are any."""
        names = self.results.values("mitigation")
        for condition in (self.private, *map(self.plain.at, self.epsilons), self.plain):
            if any(self.results.holds(condition.having(mitigation=name)) for name in names if name != NO_MITIGATION):
                return condition
        return self.private

    @property
    def where(self) -> str:
        """The partition and strategy, where there are several."""
        several = [
            f"{name} '{getattr(self.plain, name)}'"
            for name in ("partition", "strategy")
            if len(self.results.values(name)) > 1
        ]
        return " and ".join(several)

    def overall(self, condition: Condition | None, *, kind: str = "level") -> Estimate | None:
        """The whole model's utility under a condition."""
        if self.utility is None or condition is None:
            return None
        return self.results.one(condition, "overall", self.utility, kind=kind)

    def gap(self, condition: Condition, column: str, *, kind: str = "level") -> Estimate | None:
        """The gap between the groups of a column."""
        if self.gap_metric is None:
            return None
        return self.results.one(condition, "gap", self.gap_metric, column=column, statistic=GAP_STATISTIC, kind=kind)


def focus_of(results: Results) -> Focus:
    """Choose by fixed rules, not by what was found."""
    epsilons = tuple(results.epsilons())
    return Focus(
        results=results,
        plain=results.main(),
        epsilons=epsilons,
        epsilon=epsilons[(len(epsilons) - 1) // 2] if epsilons else None,
        utility=_first(UTILITY, results.metrics("overall")),
        group_metric=_first(GROUPS, results.metrics("group")),
        gap_metric=_first(GAPS, results.metrics("gap", GAP_STATISTIC)),
    )


def cost(price: Estimate, metric: str) -> Estimate:
    """A price such that more is worse; as it is where no way is better."""
    return -price if better(metric) == HIGHER else price


def gain(difference: Estimate, metric: str) -> Estimate:
    """A difference such that more is better; as it is where no way is better."""
    return -difference if better(metric) == LOWER else difference


def extremes(entries: Iterable[Measured], metric: str) -> tuple[Measured, Measured, Estimate, int] | None:
    """The entry whose price costs the most and the one whose price costs the least.

    Args:
        entries: Prices; suppressed ones and those without an interval take no part.
        metric: Of the prices.

    Returns:
        Both, the difference of their costs, with its interval widened because the two were chosen from all pairs, and
        how many entries took part; None where there are fewer than two.
    """
    known = [
        (cost(entry.estimate, metric), entry) for entry in entries if entry.estimate and entry.estimate.has_interval
    ]
    if len(known) < 2:
        return None
    most, least = max(known, key=lambda pair: pair[0].value), min(known, key=lambda pair: pair[0].value)
    pairs = len(known) * (len(known) - 1) // 2
    return most[1], least[1], most[0].minus(least[0], pairs), len(known)


def _first(wanted: Sequence[str], there: Sequence[str]) -> str | None:
    """The first that is wanted, else the first that is there."""
    return next((name for name in wanted if name in there), next(iter(there), None))
