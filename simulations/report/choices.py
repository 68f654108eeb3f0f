"""Findings about what the experimenter may choose: strategies, partitions and mitigations."""

from collections.abc import Iterator

from fedprofile.simulations.report.focus import Focus, gain
from fedprofile.simulations.report.metrics import HIGHER, better, gap_label, label
from fedprofile.simulations.report.results import NO_MITIGATION
from fedprofile.simulations.report.wording import change, when

PLURALS = {"strategy": "strategies", "partition": "partitions"}


def choices(focus: Focus, name: str) -> Iterator[str]:
    """Whether the strategies, or the partitions, differ."""
    if focus.utility is None:
        return
    found = [
        (choice, estimate)
        for choice in focus.results.values(name)
        if (estimate := focus.overall(focus.private.having(**{name: choice}))) is not None and estimate.has_interval
    ]
    if len(found) < 2:
        return
    direction = better(focus.utility) or HIGHER
    best = max(found, key=lambda pair: direction * pair[1].value)
    least = min(found, key=lambda pair: direction * pair[1].value)
    difference = gain(best[1].minus(least[1], len(found) * (len(found) - 1) // 2), focus.utility)
    metric, at = label(focus.utility), when(focus.private.epsilon)
    if difference.sign > 0:
        yield (
            f"{at}, of {len(found)} {PLURALS[name]}, '{best[0]}' has a better {metric} than '{least[0]}' by "
            f"{difference.text()}."
        )
    else:
        yield (
            f"{at} no difference in {metric} was found between the {len(found)} {PLURALS[name]} (largest minus "
            f"smallest: {difference.text(signed=True)})."
        )


def mitigations(focus: Focus) -> Iterator[str]:
    """What each mitigation does to the gap between groups, and what it costs the whole model."""
    metric = focus.gap_metric
    tried = [name for name in focus.results.values("mitigation") if name != NO_MITIGATION]
    if metric is None or not tried:
        return
    at = when(focus.mitigated.epsilon)
    for column in focus.results.columns("gap"):
        before = focus.gap(focus.mitigated, column)
        found = [
            (name, gap.minus(before, len(tried)))
            for name in tried
            if before is not None
            and (gap := focus.gap(focus.mitigated.having(mitigation=name), column)) is not None
            and gap.has_interval
        ]
        if not found:
            continue
        what = f"the {gap_label(metric)} of {column}"
        for name, difference in found:
            if difference.sign:
                verb = "narrows" if difference.sign < 0 else "widens"
                by = (difference if difference.sign > 0 else -difference).text()
                yield f"{at} the mitigation '{name}' {verb} {what} by {by}{_price_of(focus, name, len(tried))}."
        without = [f"'{name}' ({difference.text(signed=True)})" for name, difference in found if not difference.sign]
        if without:
            yield f"{at} no difference in {what} was found with the mitigation(s) {', '.join(without)}."


def _price_of(focus: Focus, mitigation: str, comparisons: int) -> str:
    """What a mitigation does to the whole model, as the end of a sentence."""
    before, after = focus.overall(focus.mitigated), focus.overall(focus.mitigated.having(mitigation=mitigation))
    if focus.utility is None or before is None or after is None:
        return ""
    difference, name = after.minus(before, comparisons), label(focus.utility)
    if not difference.sign:
        return f"; in {name} no difference was found ({difference.text(signed=True)})"
    return f"; the {name} {change(difference, focus.utility)}"
