"""The report of an experiment, for a manager to read and a researcher to cite."""

from fedprofile.simulations.report.facts import (
    AuditRow,
    CellTime,
    Composed,
    KnownTruth,
    PartitionPicture,
    ReportFacts,
    Spent,
)
from fedprofile.simulations.report.writing import write_report

__all__ = [
    "AuditRow",
    "CellTime",
    "Composed",
    "KnownTruth",
    "PartitionPicture",
    "ReportFacts",
    "Spent",
    "write_report",
]
