"""A report put together from the results and the facts."""

from fedprofile.simulations.report.document import Document
from fedprofile.simulations.report.facts import ReportFacts
from fedprofile.simulations.report.findings import audit_findings, findings
from fedprofile.simulations.report.focus import focus_of
from fedprofile.simulations.report.groups import group_section, price_section
from fedprofile.simulations.report.mitigations import mitigation_section
from fedprofile.simulations.report.partitions import partition_section
from fedprofile.simulations.report.privacy import audit_section, privacy_section
from fedprofile.simulations.report.provenance import (
    OF_EVERY_AUDIT,
    OF_EVERY_REPORT,
    REAL_DATA,
    caveat_section,
    provenance_section,
)
from fedprofile.simulations.report.results import Results, printable
from fedprofile.simulations.report.tenants import tenant_section
from fedprofile.simulations.report.truth import truth_section
from fedprofile.simulations.report.utility import utility_section


def compose(results: Results, facts: ReportFacts) -> Document:
    """Put a report together.

    Args:
        results: Of the experiment.
        facts: Of the experiment.

    Returns:
        What is the same in HTML and in Markdown.
    """
    focus = focus_of(results)
    sections = (
        utility_section(focus),
        group_section(focus),
        price_section(focus),
        tenant_section(focus),
        partition_section(facts),
        mitigation_section(focus),
        truth_section(focus, facts),
        audit_section(facts),
        privacy_section(facts),
        provenance_section(facts),
        caveat_section(facts, OF_EVERY_REPORT),
    )
    cells = f"{len(facts.cells)} federations" if facts.cells else "Federations"
    seeds = f", seeds {', '.join(map(str, facts.seeds))}" if facts.seeds else ""
    return Document(
        title=f"Who pays for privacy? Experiment '{printable(facts.experiment)}'",
        summary=f"{cells} on {_data(facts)}{seeds}.",
        notices=_notices(facts),
        findings=findings(focus, facts),
        meaning=facts.meaning,
        sections=tuple(section for section in sections if section is not None),
    )


def compose_audit(facts: ReportFacts) -> Document:
    """Put the report of an audit together.

    Args:
        facts: Of the audit.

    Returns:
        What is the same in HTML and in Markdown.
    """
    sections = (audit_section(facts), provenance_section(facts), caveat_section(facts, OF_EVERY_AUDIT))
    return Document(
        title=f"What does a federation leak? Audit '{printable(facts.experiment)}'",
        summary=f"Attacks on federations on {_data(facts)}.",
        notices=_notices(facts),
        findings=audit_findings(facts),
        meaning=facts.meaning,
        sections=tuple(section for section in sections if section is not None),
    )


def _data(facts: ReportFacts) -> str:
    return f"{printable(facts.dataset)}, which is {'real' if facts.real_data else 'generated'} data"


def _notices(facts: ReportFacts) -> tuple[str, ...]:
    notices = [REAL_DATA] if facts.real_data else []
    if facts.audit and not all(row.holds for row in facts.audit if row.judges):
        notices.append("The audit fails: read its section before anything else is believed.")
    return tuple(notices)
