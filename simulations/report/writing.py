"""A report as files: one HTML page that needs nothing else, Markdown, and the table of results."""

import re
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedprofile.simulations.report.compose import compose, compose_audit
from fedprofile.simulations.report.document import Document
from fedprofile.simulations.report.facts import ReportFacts
from fedprofile.simulations.report.results import Results

WRAPPED = 30
"""Letters from which a cell may be broken into lines."""


def write_report(out: Path, results: pd.DataFrame, facts: ReportFacts) -> None:
    """Write `report.html`, `report.md` and `results.parquet`.

    The same input gives the same bytes. A number that is marked as suppressed is in none of the files.

    Args:
        out: The folder; made where it is missing.
        results: One row for each number, with the columns `fedprofile.simulations.report.results.COLUMNS`.
        facts: Of the experiment.

    Raises:
        DataError: The results lack a column or rows, or hold a number twice.
    """
    checked = Results(results)
    _write(out, compose(checked, facts))
    # Last and as one step: where it is, the report is whole.
    part = out / "results.parquet.part"
    checked.table.to_parquet(part, index=False)
    part.replace(out / "results.parquet")


def write_audit_report(out: Path, facts: ReportFacts) -> None:
    """Write an audit's `report.html` and `report.md`.

    Args:
        out: The folder; made where it is missing.
        facts: Of the audit.
    """
    _write(out, compose_audit(facts))


def _write(out: Path, document: Document) -> None:
    out.mkdir(parents=True, exist_ok=True)
    loader = FileSystemLoader(Path(__file__).parent)
    html = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    html.filters["unbroken"] = _unbroken
    page = html.get_template("report.html.j2").render(report=document)
    (out / "report.html").write_text(page, encoding="utf-8")
    # Everything that a Markdown template prints goes through the escaping; it writes Markdown's own signs itself.
    markdown = Environment(
        loader=loader,
        autoescape=False,
        finalize=escaped_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = markdown.get_template("report.md.j2").render(report=document)
    (out / "report.md").write_text(text, encoding="utf-8")


def escaped_markdown(value: object) -> str:
    """Text that Markdown shows as it is, also in a table.

    >>> escaped_markdown("a|b <i> [x](y) *z* 0.71 [0.69, 0.73]")
    'a\\\\|b &lt;i> [x]\\\\(y) \\\\*z\\\\* 0.71 [0.69, 0.73]'
    """
    text = re.sub(r"&(?=#|\w+;)", "&amp;", str(value))
    text = re.sub(r"([\\`*|~])", r"\\\1", text).replace("](", "]\\(").replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _unbroken(cell: str) -> str:
    """A short cell of a table in one line."""
    return cell.replace(" ", "\N{NO-BREAK SPACE}") if len(cell) < WRAPPED else cell
