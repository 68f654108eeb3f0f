"""The population's Bayes rule, known in closed form, beside what was measured of it and of the trained model."""

from fedprofile.simulations.report.document import Section, Table
from fedprofile.simulations.report.estimates import Estimate, number
from fedprofile.simulations.report.facts import KnownTruth, ReportFacts
from fedprofile.simulations.report.focus import Focus
from fedprofile.simulations.report.metrics import STATISTICS, label, standard_name
from fedprofile.simulations.report.results import Condition
from fedprofile.simulations.report.tables import NOTHING, epsilon_header, estimate_text

NOTE = (
    "No predictor from the same records decides better than the Bayes rule. Its rates and gaps are known exactly, and "
    "the same code that measures the trained model has measured it: this shows what that code is worth."
)


def truth_section(focus: Focus, facts: ReportFacts) -> Section | None:
    """The section, where the truth is known."""
    if not facts.truth:
        return None
    bayes = focus.results.beside(focus.plain, "bayes")
    header = ("what", "truth", "measured", "inside", *(f"trained, {epsilon_header(one.epsilon)}" for one in focus.both))
    rows = []
    for truth in facts.truth:
        measured = None if bayes is None else measured_truth(focus, bayes, truth)
        trained = (estimate_text(measured_truth(focus, one, truth)) for one in focus.both)
        rows.append((_name(truth), number(truth.value), estimate_text(measured), _inside(truth, measured), *trained))
    table = Table("The Bayes rule's known truth, with 95 % intervals of what was measured", header, tuple(rows))
    return Section("truth", "Known truth", (NOTE,), tables=(table,))


def measured_truth(focus: Focus, condition: Condition, truth: KnownTruth) -> Estimate | None:
    """What was measured under a condition of a number that is known for the Bayes rule."""
    return focus.results.one(
        condition,
        truth.scope,
        standard_name(truth.metric),
        column=truth.column,
        group=truth.group,
        statistic=truth.statistic,
    )


def _inside(truth: KnownTruth, measured: Estimate | None) -> str:
    if measured is None or not measured.has_interval:
        return NOTHING
    return "yes" if measured.low <= truth.value <= measured.high else "NO"


def _name(truth: KnownTruth) -> str:
    statistic = STATISTICS.get(truth.statistic, truth.statistic)
    parts = (label(standard_name(truth.metric)), statistic, truth.column, truth.group)
    return ", ".join(part for part in parts if part)
