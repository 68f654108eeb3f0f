"""One cell as a value: text, a number, a vector, a user's id, a moment. What does not fit is said without the cell.

Who a user is. A user is one id: text or a whole number, in Unicode's NFC form and without white space around it. Ids
must be stable for life, because the ledger's promise and the split into training and evaluation users are kept by id:
a person whose id changes is a new user with a budget of their own. 1 and "1" are one user, "01" and "1" are two, and
a float such as 1.0 is nobody: the same column read as whole numbers elsewhere would give other ids.

When something was. A date without a clock says only the day. As the time of an event it counts as the day's end, and
as the time of a label as its start, so that "strictly before" is an earlier day and nothing that happened after the
label can be in its history. A typed timestamp at midnight (Parquet, SQL) is such a date, since that is how dates are
stored there; text with a clock, T00:00:00 too, is taken at its word.
"""

import json
import math
import unicodedata
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from fedprofile.client.tables import UNREADABLE, is_text

LONGEST_TEXT = 100_000
"""Characters of a cell; more would never fit into `max_tokens` and only cost time."""

_LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127

_DAY_END = time(23, 59, 59, 999999)


class CellError(Exception):
    """What a cell is not; never the cell itself."""


@dataclass(frozen=True)
class Moment:
    """A time.

    Args:
        at: In UTC; a time without a zone as if it were in UTC.
        zoned: Whether it came with a zone. Only moments that agree in this can be put in order.
    """

    at: datetime
    zoned: bool


def read_text(cell: Any) -> str | None:
    """A cell as text.

    Args:
        cell: As found.

    Returns:
        Without white space around it; None for nothing and for a float or decimal that is not a number, which is how
        files and databases spell nothing.

    Raises:
        CellError: It is a list, an object, bytes, no valid text, or too long.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, Decimal) and cell.is_nan()):
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if not isinstance(cell, str | int | float | Decimal | date | time | UUID):
        kind = "cannot be read" if cell is UNREADABLE else "is not text, a number or a time"
        raise CellError(f"{kind}; convert it where the data comes from")
    text = str(cell).strip()
    if len(text) > LONGEST_TEXT:
        raise CellError(f"is longer than {LONGEST_TEXT} characters; shorten it")
    if not is_text(text):
        raise CellError("is not valid text; store it as UTF-8")
    return text


def read_number(cell: Any) -> float | None:
    """A cell as a number.

    Args:
        cell: As found.

    Returns:
        None for nothing.

    Raises:
        CellError: It is not a finite number.
    """
    text = read_text(cell)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CellError("is not a finite number")
    return number


def read_vector(cell: Any, *, width: int) -> tuple[float, ...] | None:
    """A cell as a vector.

    Args:
        cell: As found: a list (Parquet, JSON Lines, arrays of PostgreSQL), or text with a JSON array (CSV, SQL).
        width: How many values it must have.

    Returns:
        None for nothing.

    Raises:
        CellError: It is no list of so many numbers, or one of them is not finite as a 32-bit number.
    """
    if isinstance(cell, list | tuple):
        values: Any = cell
    else:
        text = read_text(cell)
        if not text:
            return None
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
    if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
        raise CellError("is not a list of numbers, such as [0.5, -1.25]")
    if len(values) != width:
        raise CellError(f"does not have the card's {width} values")
    try:
        found = tuple(map(float, values))
    except (OverflowError, ValueError):  # A whole number beyond floats, or a decimal's signalling not-a-number.
        found = (math.nan,)
    if not all(abs(value) <= _LARGEST_FLOAT32 for value in found):
        raise CellError("holds a value that is not finite as a 32-bit number")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def read_user(cell: Any) -> str:
    """A cell as a user's id; see the module's docstring.

    Args:
        cell: As found.

    Returns:
        The id.

    Raises:
        CellError: It is empty, no valid text, or of a type that is no stable id.
    """
    if isinstance(cell, float) and not math.isnan(cell):
        raise CellError("is a float, such as 1.0, which is no stable id; store users as whole numbers or as text")
    known = cell is None or cell is UNREADABLE or isinstance(cell, str | int | float | UUID)
    if not known or isinstance(cell, bool):
        raise CellError("is no stable id; store users as whole numbers or as text")
    user = unicodedata.normalize("NFC", read_text(cell) or "").strip()
    if not user:
        raise CellError("is empty; every row needs its user")
    return user


def read_moment(cell: Any, *, day_ends: bool) -> Moment:
    """A cell as a time; see the module's docstring.

    Args:
        cell: As found: ISO 8601 text, a date, or a timestamp.
        day_ends: A date without a clock is the day's last microsecond (for events) and not its first (for labels).

    Returns:
        The moment.

    Raises:
        CellError: It is no such time.
    """
    found, whole_day = _time(cell)
    if whole_day and day_ends:
        found = datetime.combine(found.date(), _DAY_END, found.tzinfo)
    try:
        zoned = found.utcoffset() is not None
        return Moment(found.astimezone(UTC) if zoned else found.replace(tzinfo=UTC), zoned)
    except (OverflowError, ValueError):
        raise CellError("is beyond the years 1 to 9999") from None


def _time(cell: Any) -> tuple[datetime, bool]:
    """A time, and whether it says only the day."""
    if isinstance(cell, datetime):
        # Anew from its parts: pandas' timestamps count in nanoseconds and end in the year 2262.
        found = datetime.combine(date(cell.year, cell.month, cell.day), cell.time(), cell.tzinfo)
        return found, found.time() == time.min
    if isinstance(cell, date):
        return datetime.combine(cell, time.min), True
    text = read_text(cell) or ""
    try:
        return datetime.combine(date.fromisoformat(text), time.min), True
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text), False
    except ValueError:
        raise CellError("is not an ISO 8601 date or time, such as 2026-03-31 or 2026-03-31T12:30:00") from None
