"""The cells behind the problems of a source, for the person at the tenant's own terminal and nobody else.

An error never holds a cell (`fedprofile.common.errors`), so these are read again from the source, when a person asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedprofile.client.tables import UNREADABLE, read_rows
from fedprofile.common.errors import Problem, printable
from fedprofile.common.tenant import TenantFile

LONGEST = 80
"""Characters of a cell that are shown."""


def wrong_cells(problems: Iterable[Problem], tenant: TenantFile, folder: Path) -> Iterator[str]:
    """Find the cells that problems are about.

    Args:
        problems: Of this tenant's sources; those about whole rows have no cell to show.
        tenant: Says where the sources are.
        folder: What relative paths count from.

    Yields:
        One line for each cell: its place and its value.

    Raises:
        DataError: A source cannot be read.
    """
    columns: dict[tuple[str, int], list[str]] = {}
    for problem in problems:
        if problem.column is not None:
            columns.setdefault((problem.part, problem.line), []).append(problem.column)
    for part, source in (("source", tenant.source), ("events", tenant.events)):
        if source is None or not any(place == part for place, _ in columns):
            continue
        for row in read_rows(source, folder, _any_columns):
            for column in columns.get((part, row.line), ()):
                yield f"{Problem(part, row.line, column, _shown(row.cells.get(column)))}"


def _any_columns(columns: Sequence[str]) -> None:
    """The columns were checked when the problems were found."""


def _shown(cell: object) -> str:
    if cell is UNREADABLE:
        return "cannot be shown"
    text = printable(repr(cell))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
