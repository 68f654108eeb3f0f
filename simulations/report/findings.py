"""The first page: what was found, in sentences made from the table by fixed rules.

- A direction is stated only where the whole 95 % interval lies on one side of zero. Where it does not, the sentence
  says that no difference was found, which is not that there is none.
- A difference that the table does not hold is made from two of its numbers by `Estimate.minus`.
- Where the largest and the smallest of several are compared, the interval is widened for having chosen them.
- A suppressed number takes no part.
"""

from collections.abc import Iterator

from fedprofile.simulations.report.alike import alike, decided_alike
from fedprofile.simulations.report.choices import choices, mitigations
from fedprofile.simulations.report.document import Findings
from fedprofile.simulations.report.estimates import Estimate, epsilon_text, number
from fedprofile.simulations.report.facts import ReportFacts
from fedprofile.simulations.report.focus import GAP_STATISTIC, Focus, extremes, gain
from fedprofile.simulations.report.metrics import NEITHER, better, gap_label, label, sentence_start
from fedprofile.simulations.report.results import SUPPRESSED, printable
from fedprofile.simulations.report.wording import change, price_of_privacy, when

SHOWN_TENANTS = 3


def findings(focus: Focus, facts: ReportFacts) -> tuple[Findings, ...]:
    """All findings of an experiment.

    Args:
        focus: What the first page is about.
        facts: Of the experiment.

    Returns:
        By topic; a topic of which nothing was measured is left out.
    """
    topics = {
        "What privacy costs": (_utility(focus), alike(focus), _other_ways(focus)),
        "Which people pay": (_groups(focus), _gaps(focus)),
        "Which tenants": (_client_gaps(focus), _tenants(focus)),
        "What one can choose": (choices(focus, "strategy"), choices(focus, "partition"), mitigations(focus)),
        "Whether to believe it": (_audit(facts), _membership(facts), _truth(focus, facts), _suppressed(focus)),
    }
    found = {topic: tuple(sentence for part in parts for sentence in part) for topic, parts in topics.items()}
    return tuple(Findings(topic, sentences) for topic, sentences in found.items() if sentences)


def audit_findings(facts: ReportFacts) -> tuple[Findings, ...]:
    """What an audit found.

    Args:
        facts: Of the audit.

    Returns:
        By topic; a topic of which nothing was measured is left out.
    """
    topics = {"Whether the claims hold": tuple(_audit(facts)), "Who is found out": tuple(_membership(facts))}
    return tuple(Findings(topic, sentences) for topic, sentences in topics.items() if sentences)


def _utility(focus: Focus) -> Iterator[str]:
    if focus.utility is None:
        return
    name, without = label(focus.utility), focus.overall(focus.plain)
    where = f" ({focus.where})" if focus.where else ""
    if focus.epsilon is None:
        if without is not None:
            yield f"Without noise the federation's {name}{where} is {without.text()}; no cell was run with noise."
        return
    found = focus.overall(focus.private)
    if found is None:
        return
    start = f"At epsilon {epsilon_text(focus.epsilon)} the federation's {name}{where} is {found.text()}"
    if without is None:
        yield f"{start}; it was not run without noise, so that what privacy costs is not known."
    else:
        paid = price_of_privacy(focus.overall(focus.private, kind="price"), focus.utility)
        yield f"{start}; without noise it is {without.text()}: {paid}."
    others = [epsilon for epsilon in focus.epsilons if epsilon != focus.epsilon]
    prices = [(epsilon, focus.overall(focus.plain.at(epsilon), kind="price")) for epsilon in others]
    told = [
        f"at epsilon {epsilon_text(epsilon)} {price_of_privacy(price, focus.utility)}"
        for epsilon, price in prices
        if price is not None
    ]
    if told:
        yield sentence_start("; ".join(told)) + "."


def _other_ways(focus: Focus) -> Iterator[str]:
    found = focus.overall(focus.private)
    if focus.utility is None or found is None:
        return
    name, at = label(focus.utility), when(focus.private.epsilon)
    for arm, words in (("alone", "training alone"), ("pooled", "training on all data in one place")):
        other = focus.overall(focus.results.beside(focus.private, arm))
        if other is None:
            continue
        difference = gain(found.minus(other), focus.utility)
        if not difference.sign:
            yield (
                f"{at} no difference was found between the federation and {words}: {name} "
                f"{difference.text(signed=True)}."
            )
        elif difference.sign > 0:
            yield f"{at} the federation is better than {words}, by {difference.text()} in {name}."
        else:
            yield f"{at} the federation is not better than {words} but worse, by {(-difference).text()} in {name}."


def _groups(focus: Focus) -> Iterator[str]:
    metric = focus.group_metric
    if metric is None or focus.epsilon is None:
        return
    at, name = when(focus.epsilon), label(metric)
    for column in focus.results.columns("group"):
        entries = focus.results.find(focus.private, "group", metric, column=column, kind="price")
        hidden = sum(entry.estimate is None for entry in entries)
        aside = f" {hidden} of its groups: {SUPPRESSED}." if hidden else ""
        found = extremes(entries, metric)
        if found is None:
            continue
        most, least, difference, count = found
        assert most.estimate is not None and least.estimate is not None
        if difference.sign <= 0:
            yield (
                f"{at} no difference was found between the {count} groups of {column} in what privacy does to their "
                f"{name} (largest minus smallest: {difference.text(signed=True)}).{aside}"
            )
            continue
        verb = "changes more than" if better(metric) == NEITHER else "pays more than"
        yield (
            f"{at}, of the {count} groups of {column}, '{most.group}' {verb} '{least.group}': its {name} "
            f"{change(most.estimate, metric)}, that of '{least.group}' {change(least.estimate, metric)}; between them "
            f"lie {difference.text()}.{aside}"
        )


def _gaps(focus: Focus) -> Iterator[str]:
    metric = focus.gap_metric
    if metric is None:
        return
    for column in focus.results.columns("gap"):
        found, price = focus.gap(focus.private, column), focus.gap(focus.private, column, kind="price")
        if found is None:
            continue
        what = f"{gap_label(metric)} between the groups of {column}"
        start = f"{when(focus.private.epsilon)} "
        start += f"the {what} is {found.text()}" if found.sign else f"no {what} was found ({found.text()})"
        without = focus.gap(focus.plain, column)
        if focus.epsilon is None or without is None or price is None:
            yield f"{start}."
        elif price.sign:
            wider = "wider" if price.sign > 0 else "narrower"
            by = (price if price.sign > 0 else -price).text()
            emptied = price.sign < 0 and decided_alike(focus, focus.private) is not None
            why = ", by deciding nearly everybody alike" if emptied else ""
            yield f"{start}; without noise it is {without.text()}: noise makes it {wider} by {by}{why}."
        else:
            yield (
                f"{start}; without noise it is {without.text()}: no difference was found ({price.text(signed=True)})."
            )


def _client_gaps(focus: Focus) -> Iterator[str]:
    """Whether tenants' own gaps lie above the one of all their users together."""
    metric = focus.gap_metric
    if metric is None:
        return
    for column in focus.results.columns("client_gap"):
        whole = focus.gap(focus.private, column)
        entries = [
            entry
            for entry in focus.results.find(focus.private, "client_gap", metric, column=column, statistic=GAP_STATISTIC)
            if entry.estimate is not None and entry.estimate.has_interval
        ]
        if whole is None or not entries:
            continue
        above = []
        for entry in entries:
            assert entry.estimate is not None
            difference = entry.estimate.minus(whole, len(entries))
            if difference.sign > 0:
                above.append((difference.value, entry))
        start = f"{when(focus.private.epsilon)} the {gap_label(metric)} of {column} over all users is {whole.text()}"
        mean = focus.results.one(focus.private, "client_gap", metric, column=column, statistic="mean")
        if mean is not None and mean.minus(whole).sign > 0:
            yield f"{start}. This global gap hides larger ones: the mean of the tenants' own gaps is {mean.text()}."
            continue
        if not above:
            yield f"{start}; at none of {len(entries)} tenants was a larger one found."
            continue
        above.sort(key=lambda pair: -pair[0])
        named = ", ".join(
            f"{entry.group} {entry.estimate.text()}" for _, entry in above[:SHOWN_TENANTS] if entry.estimate
        )
        yield (
            f"{start}. This global gap hides larger ones: {len(above)} of {len(entries)} tenants have one of their own "
            f"that is larger ({named}{', ...' if len(above) > SHOWN_TENANTS else ''})."
        )


def _tenants(focus: Focus) -> Iterator[str]:
    if focus.utility is None:
        return
    results = focus.results
    worst = results.one(focus.private, "spread", focus.utility, statistic="worst_tenth")
    whole = focus.overall(focus.private)
    if worst is not None and whole is not None:
        yield (
            f"{when(focus.private.epsilon)} the worst tenth of tenants has a mean {label(focus.utility)} of "
            f"{worst.text()}; over all users it is {whole.text()}."
        )


def _truth(focus: Focus, facts: ReportFacts) -> Iterator[str]:
    measured = focus.results.beside(focus.plain, "bayes")
    if not facts.truth or measured is None:
        return
    found = [
        (truth.value, estimate)
        for truth in facts.truth
        if (
            estimate := focus.results.one(measured, "gap", truth.metric, column=truth.column, statistic=truth.statistic)
        )
        is not None
        and estimate.has_interval
    ]
    if found:
        inside = sum(estimate.low <= value <= estimate.high for value, estimate in found)
        yield (
            f"The interval that was measured holds the truth for {inside} of {len(found)} gaps of the population's "
            "Bayes rule, which are known in closed form."
        )


def _audit(facts: ReportFacts) -> Iterator[str]:
    if facts.audit is None:
        return
    claimed = [row for row in facts.audit if row.claim is not None]
    failing = [row for row in claimed if not row.holds]
    for row in failing:
        start = "THE AUDIT FAILS:" if row.judges else "Beside the attack that judges,"
        if row.lacks_noise:
            assert row.noise is not None
            yield (
                f"{start} the updates hold {Estimate(*row.noise).text()} times the noise that the ledger accounts for "
                f"in its claim of {row.claim}."
            )
            continue
        yield (
            f"{start} '{row.attack}' gives a lower bound on epsilon of {number(row.bound, 2)}, above the "
            f"claim of {row.claim}."
        )
    if claimed and not failing:
        largest = max(claimed, key=lambda row: row.bound / row.claim.epsilon if row.claim else 0.0)
        yield (
            f"The audit's lower bounds on epsilon lie below the claim in all of {len(claimed)} attacks; the nearest is "
            f"{number(largest.bound, 2)} against a claim of {largest.claim}."
        )
    read = [row for row in claimed if row.noise is not None and not row.lacks_noise]
    if read:
        least = min(read, key=lambda row: row.noise[0] if row.noise else 0.0)
        assert least.noise is not None
        yield (
            f"The noise was read off the updates: at least {Estimate(*least.noise).text()} times what the ledger "
            f"accounts for, in {len(read)} run{'s' if len(read) > 1 else ''}."
        )
    for row in claimed:
        if row.judges and not row.could_fail:
            yield (
                f"The claim of {row.claim} could not have been refuted: had all of {row.guesses} guesses been right, "
                f"the bound would be {number(row.ceiling, 2)}."
            )
    if claimed and not any(row.claim is None for row in facts.audit):
        yield "The attack was not tried without noise, so that bounds below the claim prove nothing."
    for row in facts.audit:
        if row.claim is None:
            works = "works" if row.holds else "does NOT work"
            if not row.holds and row.judges:
                works += ", so that the audit proves nothing"
            yield (
                f"Without noise the attack '{row.attack}' {works}: {row.correct} of {row.guesses} guesses are right, "
                f"which gives a lower bound on epsilon of {number(row.bound, 2)}."
            )


def _membership(facts: ReportFacts) -> Iterator[str]:
    """The attack that finds most, without noise and with the most noise that was tried."""
    for asked in sorted({row.asked for row in facts.membership}, reverse=True):
        worst = max((row for row in facts.membership if row.asked == asked), key=lambda row: row.auc[0])
        yield (
            f"{when(asked)} an attacker tells who took part with an area under the curve of "
            f"{Estimate(*worst.auc).text()}, where 0.5 is guessing; where 1 % of the others are accused wrongly, "
            f"{Estimate(*worst.found).text()} of those who took part are found ({printable(worst.attack)})."
        )


def _suppressed(focus: Focus) -> Iterator[str]:
    if focus.results.suppressed:
        yield f"{focus.results.suppressed} numbers are not shown because they stand on {SUPPRESSED}."
