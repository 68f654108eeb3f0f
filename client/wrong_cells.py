"""The cells behind the problems of a source, for the person at the tenant's own terminal and nobody else.

An error never holds a cell (`fedprofile.common.errors`), so these are kept beside it, in memory and only where a person
asked for them: a query without an order may give other rows when it is asked again.
"""

from fedprofile.client.tables import UNREADABLE
from fedprofile.common.errors import Problem, printable

LONGEST = 80
"""Characters of a cell that are shown."""


class WrongCells:
    """Takes the cells that problems are about; see `fedprofile.client.sources.read_examples`."""

    def __init__(self) -> None:
        # A dictionary, because a cell that serves record and event is looked at twice.
        self._places: dict[Problem, None] = {}

    def __call__(self, problem: Problem, cell: object) -> None:
        """Keep a cell as it will be shown."""
        self._places[Problem(problem.part, problem.line, problem.column, _shown(cell))] = None

    def lines(self) -> list[str]:
        """One line for each cell: its place and its value."""
        return [str(place) for place in self._places]


def _shown(cell: object) -> str:
    if cell is UNREADABLE:
        return "cannot be shown"
    text = printable(repr(cell))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
