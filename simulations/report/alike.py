"""Whether a model decides nearly everybody alike, as one does that noise has left without a threshold that fits.

Rates are then near 0 or near 1 in every group, so that gaps are small whatever the model does to people. A reader who
sees a gap shrink with more noise must be told.
"""

from collections.abc import Iterator

from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.focus import Focus
from fedprofile.simulations.report.results import Condition
from fedprofile.simulations.report.wording import when

ALIKE = 0.1
"""A decision that is taken less than so many times as often as its label occurs is next to never taken."""


def decided_alike(focus: Focus, condition: Condition) -> Estimate | None:
    """The selection rate under a condition, where one of the two decisions is next to never taken."""
    rate = focus.results.one(condition, "overall", "selection_rate")
    base = focus.results.one(condition, "overall", "base_rate")
    if rate is None or base is None:
        return None
    seldom = rate.value < ALIKE * base.value or 1 - rate.value < ALIKE * (1 - base.value)
    return rate if seldom else None


def alike(focus: Focus) -> Iterator[str]:
    """What the first page says of it."""
    conditions = dict.fromkeys((focus.plain, *map(focus.plain.at, focus.epsilons)))
    found = [(one, rate) for one in conditions if (rate := decided_alike(focus, one)) is not None]
    if found:
        rates = ", ".join(f"{when(one.epsilon).lower()} {rate.text()}" for one, rate in found)
        yield (
            f"Nearly everybody is decided alike: the selection rate is {rates}. Gaps are small there because hardly "
            "anybody is decided otherwise, not because groups are treated fairly; rates say little, and AUC, which "
            "has no threshold, says more."
        )
