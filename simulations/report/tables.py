"""Tables of the report from the table of results."""

import math
from collections.abc import Iterable, Sequence

from fedprofile.simulations.report.charts import Series
from fedprofile.simulations.report.document import Table
from fedprofile.simulations.report.estimates import Estimate, epsilon_text
from fedprofile.simulations.report.focus import Focus
from fedprofile.simulations.report.results import SUPPRESSED, Condition, Measured

NOTHING = "–"


def estimate_text(estimate: Estimate | None, signed: bool = False) -> str:
    """A number that may be missing."""
    return NOTHING if estimate is None else estimate.text(signed)


def entry_text(entry: Measured | None, signed: bool = False) -> str:
    """A number that may be missing or suppressed."""
    if entry is None:
        return NOTHING
    return SUPPRESSED if entry.estimate is None else entry.estimate.text(signed)


def named_text(entry: Measured | None) -> str:
    """A number with the group or tenant whose it is."""
    return entry_text(entry) if entry is None or entry.estimate is None else f"{entry_text(entry)} ({entry.group})"


def epsilon_header(epsilon: float) -> str:
    """Of a column."""
    return epsilon_text(epsilon) if math.isinf(epsilon) else f"epsilon {epsilon_text(epsilon)}"


def all_epsilons(focus: Focus) -> list[float]:
    """Without noise first, then from the weakest promise to the strongest."""
    return [math.inf, *reversed(focus.epsilons)]


class ByEpsilon:
    """Numbers of groups or tenants at several epsilons.

    Args:
        focus: Of the report.
        condition: But for its epsilon.
        epsilons: In the order of the columns.
        scope, metric, column, statistic, kind: See `Results.find`.
    """

    def __init__(
        self,
        focus: Focus,
        condition: Condition,
        epsilons: Iterable[float],
        scope: str,
        metric: str,
        *,
        column: str | None = None,
        statistic: str = "value",
        kind: str = "level",
    ) -> None:
        self._signed = kind == "price"
        self.found: dict[float, dict[str, Measured]] = {}
        for epsilon in epsilons:
            entries = focus.results.find(
                condition.at(epsilon), scope, metric, column=column, statistic=statistic, kind=kind
            )
            if entries:
                self.found[epsilon] = {entry.group: entry for entry in entries}
        self.groups = list(dict.fromkeys(group for entries in self.found.values() for group in entries))

    def shown(self) -> list[str]:
        """Groups of which there is a number to draw."""
        return [group for group in self.groups if any(self._estimate(epsilon, group) for epsilon in self.found)]

    def series(self, epsilons: Iterable[float], groups: Sequence[str]) -> list[Series]:
        """For a figure: one for each epsilon that is there."""
        return [
            Series(epsilon_header(epsilon), [self._estimate(epsilon, group) for group in groups])
            for epsilon in epsilons
            if epsilon in self.found
        ]

    def table(self, caption: str, first: str) -> Table:
        """All of it.

        Args:
            caption: A sentence.
            first: What the rows are.
        """
        rows = tuple(
            (
                group,
                self._users(group),
                *(entry_text(entries.get(group), self._signed) for entries in self.found.values()),
            )
            for group in self.groups
        )
        return Table(caption, (first, "users", *map(epsilon_header, self.found)), rows)

    def sorted_groups(self, epsilon: float) -> list[str]:
        """Those to draw, by their value at an epsilon, smallest first."""
        entries = self.found.get(epsilon, {})
        known = [(found.value, group) for group in self.shown() if (found := _known(entries.get(group)))]
        return [group for _, group in sorted(known)]

    def _estimate(self, epsilon: float, group: str) -> Estimate | None:
        return _known(self.found[epsilon].get(group))

    def _users(self, group: str) -> str:
        counts = {entries[group].users for entries in self.found.values() if group in entries}
        known = sorted(count for count in counts if count is not None)
        if not known or None in counts:
            return SUPPRESSED
        return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _known(entry: Measured | None) -> Estimate | None:
    return None if entry is None else entry.estimate
