"""One cell: what is a user's id, what is a time, and that no message holds a cell."""

import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.cells import LONGEST_TEXT, CellError, read_moment, read_number, read_text, read_user
from fedprofile.client.tables import UNREADABLE

SECRET = "alice@example.org"


def test_ids_that_look_the_same_are_one_user_only_by_their_text() -> None:
    assert read_user(1) == read_user("1") == read_user(" 1\n") != read_user("01")
    # Composed and decomposed: the same letters to everyone who reads them.
    assert read_user("Jose\u0301") == read_user("Jos\u00e9 ") == "Jos\u00e9"
    assert read_user("\u2002ann\u00a0") == "ann"
    assert read_user("ALICE") != read_user("alice")
    some = uuid.uuid4()
    assert read_user(some) == str(some)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (1.0, "is a float, such as 1.0, which is no stable id; store users as whole numbers or as text"),
        (float("inf"), "is a float"),
        (True, "is no stable id"),
        (Decimal(1), "is no stable id"),
        (date(2026, 1, 1), "is no stable id"),
        ([SECRET], "is no stable id"),
        (None, "is empty"),
        (float("nan"), "is empty"),
        (" \u2003", "is empty"),
        (f"{SECRET}\ud800", "is not valid text"),
        (UNREADABLE, "cannot be read"),
    ],
)
def test_what_is_no_id_is_said_plainly(cell: Any, expected: str) -> None:
    with pytest.raises(CellError, match=expected) as caught:
        read_user(cell)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("cell", [[1], {"a": 1}, b"x", "\udcff", "x" * (LONGEST_TEXT + 1), UNREADABLE])
def test_what_is_no_text_or_number_is_refused(cell: Any) -> None:
    for read in (read_text, read_number):
        with pytest.raises(CellError):
            read(cell)
    with pytest.raises(CellError):
        read_moment(cell, day_ends=True)


def test_values_and_nothing() -> None:
    assert read_text("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert [read_text(cell) for cell in (None, float("nan"), " a ", True, 3, Decimal("1.50"))] == [
        None,
        None,
        "a",
        "true",
        "3",
        "1.50",
    ]
    assert [read_number(cell) for cell in (None, "", "1e3", Decimal("0.5"))] == [None, None, 1000.0, 0.5]
    for cell in ("1e999", "nan", "three", 10**400, True):
        with pytest.raises(CellError, match="finite number"):
            read_number(cell)


DAY = date(2026, 1, 3)
MIDNIGHT = datetime(2026, 1, 3)


@pytest.mark.parametrize("cell", ["2026-01-03", " 20260103 ", DAY, MIDNIGHT, pd.Timestamp(MIDNIGHT)], ids=range(5))
def test_a_date_without_a_clock_is_the_days_end_for_events_and_its_start_for_labels(cell: Any) -> None:
    event, label = read_moment(cell, day_ends=True), read_moment(cell, day_ends=False)
    assert label.at == MIDNIGHT.replace(tzinfo=UTC)
    assert event.at == MIDNIGHT.replace(tzinfo=UTC) + timedelta(days=1, microseconds=-1)
    # Not before any label of that day, whatever its clock; before the next day's.
    assert event.at >= read_moment("2026-01-03T23:59:59.999999", day_ends=False).at
    assert event.at < read_moment("2026-01-04", day_ends=False).at


def test_a_clock_that_is_written_is_taken_at_its_word() -> None:
    for text in ("2026-01-03T00:00:00", "2026-01-03 00:00", "2026-01-03T09:00"):
        assert read_moment(text, day_ends=True) == read_moment(text, day_ends=False)
    assert read_moment(datetime(2026, 1, 3, 9), day_ends=True).at == datetime(2026, 1, 3, 9, tzinfo=UTC)


def test_zones_are_kept_apart_from_none() -> None:
    west = timezone(timedelta(hours=-8))
    for cell in ("2026-01-03T20:00:00-08:00", datetime(2026, 1, 3, 20, tzinfo=west)):
        moment = read_moment(cell, day_ends=True)
        assert moment.zoned and moment.at == datetime(2026, 1, 4, 4, tzinfo=UTC)
    # A typed midnight is the day in its own zone.
    assert read_moment(datetime(2026, 1, 3, tzinfo=west), day_ends=True).at > datetime(2026, 1, 4, 7, tzinfo=UTC)
    assert not read_moment("2026-01-03T20:00:00", day_ends=True).zoned


@pytest.mark.parametrize("cell", ["yesterday", "", None, 5, 1.5, "2026-13-01", "0001-01-01T00:00+10:00"])
def test_what_is_no_time_is_refused(cell: Any) -> None:
    with pytest.raises(CellError):
        read_moment(cell, day_ends=False)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.binary(),
        st.datetimes(),
        st.dates(),
        st.decimals(),
        st.characters(categories=["Cs"]),
        st.lists(st.integers()),
        st.just(UNREADABLE),
    )
)
def test_any_cell_is_a_value_or_a_cell_error(cell: Any) -> None:
    for read in (read_text, read_number, read_user, lambda cell: read_moment(cell, day_ends=True)):
        try:
            found = read(cell)
        except CellError:
            continue
        if read is read_user:
            assert isinstance(found, str) and found and read_user(found) == found
            found.encode()
