"""What the ledgers say was spent, what people at several tenants add up to, and what an attack could show."""

import math
from collections.abc import Iterable
from statistics import median

from fedprofile.simulations.report.charts import Drawn, Series, dots
from fedprofile.simulations.report.document import Figure, Section, Table
from fedprofile.simulations.report.estimates import Estimate, epsilon_text, number
from fedprofile.simulations.report.facts import AuditRow, Composed, MembershipRow, ReportFacts, Spent
from fedprofile.simulations.report.results import SUPPRESSED, printable
from fedprofile.simulations.report.tables import NOTHING
from fedprofile.simulations.small_counts import safe_count

FAILS, HOLDS = "FAILS", "holds"


def privacy_section(facts: ReportFacts) -> Section | None:
    """Epsilon by the ledgers, where any was spent."""
    if not facts.spent and not facts.composed:
        return None
    tables = (_spent_summary(facts.spent), _composed(facts.composed))
    paragraphs = ["Each tenant's ledger adds up all that was released about its users, updates and metrics alike."]
    if facts.composed:
        paragraphs.append(
            "Some people are at several tenants. What is released about such a person adds up over the tenants, and "
            "the guarantee that each tenant gives is not the one that this person has."
        )
    return Section(
        "privacy",
        "Epsilon that was spent",
        tuple(paragraphs),
        tables=tuple(table for table in tables if table is not None),
        more=(_spent_by_tenant(facts.spent),) if facts.spent else (),
    )


def audit_section(facts: ReportFacts) -> Section | None:
    """The attacks, where there was an audit."""
    if not facts.audit:
        return None
    rows = tuple(_audit_row(row) for row in facts.audit)
    header = (
        *("attack", "claim", "canaries", "guesses", "right", "lower bound on epsilon", "confidence"),
        *("noise seen over noise accounted for", "result"),
    )
    paragraphs = (
        "An attacker guesses which canaries were in the training data. How many guesses are right gives a lower bound "
        "on epsilon (Steinke, Nasr and Jagielski 2023, https://arxiv.org/abs/2305.08846). A bound above the claim "
        "refutes the claim. A bound below it does not prove the claim: another attack might do better. Without noise "
        "the attack must succeed, or it shows nothing. Where an update is one step of SGD, its noise is read off the "
        "part that no candidate explains: guesses cannot tell half the noise from the whole, this can.",
    )
    return Section(
        "audit",
        "Audit",
        paragraphs,
        figures=(_audit_figure(facts.audit),),
        tables=(Table("Guesses at canaries", header, rows), *_membership(facts.membership)),
    )


def _spent_summary(spent: Iterable[Spent]) -> Table | None:
    by_asked: dict[float, list[Spent]] = {}
    for entry in spent:
        by_asked.setdefault(entry.asked, []).append(entry)
    rows = []
    for asked, entries in sorted(by_asked.items()):
        losses = sorted((entry.loss for entry in entries), key=lambda loss: loss.epsilon)
        rows.append(
            (
                epsilon_text(asked),
                str(len({entry.tenant for entry in entries})),
                number(losses[0].epsilon, 2),
                number(median(loss.epsilon for loss in losses), 2),
                str(losses[-1]),
            )
        )
    header = ("epsilon asked for", "tenants", "smallest", "median", "largest")
    return Table("Epsilon by the tenants' ledgers", header, tuple(rows)) if rows else None


def _spent_by_tenant(spent: Iterable[Spent]) -> Table:
    largest: dict[tuple[str, float], Spent] = {}
    for entry in spent:
        key = printable(entry.tenant), entry.asked
        if key not in largest or entry.loss.epsilon > largest[key].loss.epsilon:
            largest[key] = entry
    rows = tuple((tenant, epsilon_text(asked), str(entry.loss)) for (tenant, asked), entry in sorted(largest.items()))
    return Table("The most that each tenant's ledger says, of all cells", ("tenant", "asked for", "spent"), rows)


def _composed(composed: Iterable[Composed]) -> Table | None:
    rows = tuple(
        (
            epsilon_text(entry.asked),
            str(entry.tenants),
            _count(entry.people),
            str(entry.loss),
        )
        for entry in composed
    )
    header = ("epsilon asked for", "at how many tenants", "people", "most for one of them")
    return Table("Epsilon of people at several tenants, composed", header, rows) if rows else None


def _count(people: int | None) -> str:
    shown = safe_count(people)
    return SUPPRESSED if shown is None else str(shown)


def _audit_row(row: AuditRow) -> tuple[str, ...]:
    return (
        printable(row.attack),
        "no noise" if row.claim is None else str(row.claim),
        f"{row.canaries}",
        f"{row.guesses}",
        f"{row.correct}",
        number(row.bound, 2),
        f"{row.confidence:.0%}".replace("%", " %"),
        NOTHING if row.noise is None else Estimate(*row.noise).text(),
        _outcome(row),
    )


def _outcome(row: AuditRow) -> str:
    if row.claim is None:
        return "attack works" if row.holds else "ATTACK FAILS" if row.judges else "attack does not work"
    if not row.holds:
        return FAILS if row.judges else "above the claim"
    return HOLDS if row.could_fail else "could not fail"


def _membership(rows: tuple[MembershipRow, ...]) -> Iterable[Table]:
    header = (
        "attack",
        "epsilon asked for",
        "took part",
        "did not",
        "area under the curve",
        "found at 1 % false alarms",
    )
    shown = tuple(
        (
            printable(row.attack),
            epsilon_text(row.asked),
            *map(_count, (row.members, row.others)),
            Estimate(*row.auc).text(),
            Estimate(*row.found).text(),
        )
        for row in rows
    )
    return [Table("Who of the people in the data took part? An area of 0.5 is guessing", header, shown)] if rows else []


def _audit_figure(rows: tuple[AuditRow, ...]) -> Figure:
    title = "Lower bounds on epsilon beside the claims"
    names = [f"{_claim(row)}: {printable(row.attack)}" for row in rows]
    description = f"{title}. " + ". ".join(
        f"{name}: bound {number(row.bound, 2)}, {_result(row)}" for name, row in zip(names, rows, strict=True)
    )
    claims = [Estimate(row.claim.epsilon) if row.claim and math.isfinite(row.claim.epsilon) else None for row in rows]
    series = [Series("lower bound", [Estimate(row.bound) for row in rows]), Series("claim", claims)]
    table = Table(
        title,
        ("attack", "lower bound", "claim", "bound over claim"),
        tuple(
            (
                name,
                number(row.bound, 2),
                NOTHING if row.claim is None else f"{row.claim.epsilon:.3g}",
                NOTHING if row.claim is None else number(row.bound / row.claim.epsilon, 2),
            )
            for name, row in zip(names, rows, strict=True)
        ),
    )
    return Figure(title, f"{description}.", dots(Drawn("audit", f"{description}.", "epsilon"), names, series), table)


def _claim(row: AuditRow) -> str:
    return "no noise" if row.claim is None else f"claim {row.claim.epsilon:.3g}"


def _result(row: AuditRow) -> str:
    if row.claim is None:
        return "the attack works" if row.holds else "the attack does not work"
    return "below the claim" if row.holds else "ABOVE THE CLAIM"
