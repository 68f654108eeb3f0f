"""The report of an experiment, for a manager to read and a researcher to cite."""

from fedprofile.simulations.report.facts import (
    AuditRow,
    CellTime,
    Composed,
    KnownTruth,
    MembershipRow,
    PartitionPicture,
    ReportFacts,
    Spent,
)
from fedprofile.simulations.report.writing import write_audit_report, write_report

__all__ = [
    "AuditRow",
    "CellTime",
    "Composed",
    "KnownTruth",
    "MembershipRow",
    "PartitionPicture",
    "ReportFacts",
    "Spent",
    "write_audit_report",
    "write_report",
]
