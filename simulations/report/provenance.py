"""How to get the same numbers again, and what they do not say."""

from collections.abc import Mapping

from fedprofile.simulations.report.document import Section, Table
from fedprofile.simulations.report.facts import ReportFacts
from fedprofile.simulations.report.results import SUPPRESSED, printable

REAL_DATA = (
    "This simulation is on real data and outside every ledger: the exact figures of this report are not private and "
    "are covered by no epsilon. Whoever publishes it publishes about the people in the data."
)
GENERATED = (
    "The population is generated. What was found holds for it, and for people only as far as they are like it: run the "
    "experiment on data of your own before you decide."
)
OF_EVERY_REPORT = (
    "Intervals are at 95 % each, and a report shows many: where there is no difference, one in twenty shows one by "
    "chance.",
    "'No difference was found' is not 'there is none': with few users, few seeds or much noise a difference of that "
    "size would not have been seen.",
    "The federation, the other strategies, training alone and mitigations are compared from two intervals each as if "
    "they were independent. They are judged on the same users, so that these intervals are rather too wide.",
    f"Numbers that stand on {SUPPRESSED} are not shown. That keeps small groups out of sight, but it is no guarantee: "
    "what is not shown may follow from the difference of numbers that are.",
    "Training alone gives each tenant a model of its own. An area under the curve over all tenants rewards these "
    "models for their tenants' base rates as well, where labels differ between tenants: compare within tenants.",
    "Every metric is exact over evaluation users whose labels are known. A deployed federation has noised tables and "
    "nothing else.",
    "Randomness comes from seeds and not from the system's secure source. Strategy, client logic and accountant are "
    "those of a deployment; see docs/experiments.md for what differs.",
)

OF_EVERY_AUDIT = (
    "A bound below the claim does not show that the claim holds: a better attack may exist, and only the proof covers "
    "all of them.",
    "Much stays unseen: where the noise cannot be read off the updates, half of it mostly gives bounds below the "
    "claim, and clipping of records instead of users changes nothing for canaries of one record. An audit finds gross "
    "faults, not slips.",
    "One run is one draw of coins, noise and canaries. Each run is judged by itself: where nothing is wrong, one in "
    "twenty bounds exceeds the true epsilon by chance at the confidence that is usual.",
    "It looks at training alone. That a tenant exists, when it answers, its evaluation tables, and a server that sends "
    "crafted adapters are outside of it.",
    "Randomness comes from seeds and not from the system's secure source.",
)


def provenance_section(facts: ReportFacts) -> Section:
    """Settings, versions, machine, seeds and the cells' times."""
    seeds = ", ".join(map(str, facts.seeds)) or "none"
    start = {"command": facts.command, "data": facts.dataset, "seeds": seeds}
    tables = [
        _named("Settings", "setting", {**start, **facts.settings}),
        _named("Versions", "package", facts.versions),
        _named("Machine", "what", facts.machine),
    ]
    more: tuple[Table, ...] = ()
    if facts.cells:
        rows = tuple((printable(cell.name), f"{cell.seconds:.1f}") for cell in facts.cells)
        total = sum(cell.seconds for cell in facts.cells)
        more = (Table(f"{len(rows)} cells, {total:.0f} s together", ("cell", "seconds"), rows),)
    return Section(
        "provenance",
        "Settings, versions and seeds",
        tables=tuple(table for table in tables if table is not None),
        more=more,
        epsilons=False,
    )


def caveat_section(facts: ReportFacts, general: tuple[str, ...]) -> Section:
    """Every caveat.

    Args:
        facts: Of the experiment or audit.
        general: What is to be said of all of its kind.

    Returns:
        The section.
    """
    first = REAL_DATA if facts.real_data else GENERATED
    own = tuple(map(printable, facts.caveats))
    return Section("caveats", "What these numbers do not say", items=(first, *own, *general), epsilons=False)


def _named(caption: str, what: str, values: Mapping[str, str]) -> Table | None:
    rows = tuple((printable(name), printable(str(value))) for name, value in values.items())
    return Table(caption, (what, "value"), rows) if rows else None
