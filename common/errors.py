"""The exceptions of the project, drawn once.

    FedprofileError                exit code 1
    +-- InputError                 exit code 2: a file, an option or data that cannot be used as it is
    |   +-- ConfigError            a TOML or JSON file, or a command-line value
    |   +-- DataError              rows of a source, each problem named by line and column, never by value
    |   +-- ReleaseError           a finished reply that is not what the ledger notes, or that is damaged
    +-- RefusalError               exit code 3: a promise would be broken; carries a `RefusalCode`
        +-- PolicyRefusal          beyond the tenant's policy, or a card the tenant has not agreed to
        +-- BudgetRefusal          beyond the tenant's budget
        +-- LedgerBehindError      the server has seen more of this ledger than the file holds

Messages name the value, what was expected and what to do. They never hold a cell of anyone's data: a message may
be printed, logged or sent on, so whoever raises must be able to show it to a stranger.
"""

from dataclasses import dataclass
from enum import StrEnum


def printable(text: str) -> str:
    r"""Text whose control characters are written out; lines stay lines.

    >>> print(printable("bell \x07, colour \x1b[31m, écran"))
    bell \x07, colour \x1b[31m, écran
    """
    return "".join(
        part if part.isprintable() or part == "\n" else part.encode("unicode_escape").decode("ascii") for part in text
    )


class RefusalCode(StrEnum):
    """The complete list of reasons that may leave a tenant's site."""

    UNAVAILABLE = "unavailable"
    """Anything that failed because of data, code or hardware. One constant code: the reason would tell of data."""
    POLICY = "policy"
    BUDGET = "budget"
    CARD = "card"
    """The request is for another federation card than the one the tenant agreed to."""
    ADAPTER = "adapter"
    """The received arrays are not an adapter of the agreed card."""
    LEDGER = "ledger"
    """The tenant's ledger is behind what the server has seen."""


class FedprofileError(Exception):
    """Base of every error that a person can act on.

    Args:
        message: May quote a file that somebody else wrote: what a terminal would obey and not show is escaped.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InputError(FedprofileError):
    """Something given cannot be used as it is."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file or command-line value is wrong."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row or a cell, by its place and never by its value.

    Args:
        part: "source" or "events".
        line: In the file, or the row's number in a query's result, from 1.
        column: Where one cell is wrong; None where the row as a whole is.
        what: What it is not, and what was expected.
    """

    part: str
    line: int
    column: str | None
    what: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.part == "source" else f"{self.part}, line {self.line}"
        return f"{place}: {self.what}" if self.column is None else f"{place}, column '{self.column}': {self.what}"


class DataError(InputError):
    """Rows of a source are wrong.

    Args:
        summary: One sentence without any cell's value.
        problems: Every one that was found.
        shown: How many of them the message names.
    """

    def __init__(self, summary: str, problems: tuple[Problem, ...] = (), shown: int = 10) -> None:
        self.summary, self.problems = summary, problems
        listed = "".join(f"\n  {problem}" for problem in problems[:shown])
        more = (
            f"\n  and {len(problems) - shown} more; `flower-client check` names them" if len(problems) > shown else ""
        )
        super().__init__(f"{summary}{listed}{more}")

    def in_full(self) -> "DataError":
        """The same error with every problem in its message."""
        return DataError(self.summary, self.problems, shown=len(self.problems))


class ReleaseError(InputError):
    """A stored reply is not, or is no longer, what was released; nothing is sent in its place."""


class RefusalError(FedprofileError):
    """Going on would break a promise."""

    exit_code = 3
    code = RefusalCode.POLICY


class PolicyRefusal(RefusalError):
    """The request is beyond what the tenant's policy allows.

    Args:
        message: One sentence for the tenant.
        code: What the server is told.
    """

    def __init__(self, message: str, code: RefusalCode = RefusalCode.POLICY) -> None:
        super().__init__(message)
        self.code = code


class BudgetRefusal(RefusalError):
    """The request is beyond the tenant's budget."""

    code = RefusalCode.BUDGET


class LedgerBehindError(RefusalError):
    """The ledger's file is older than what the server has already seen of it."""

    code = RefusalCode.LEDGER
