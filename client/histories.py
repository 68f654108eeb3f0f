"""The events that records need: of each user the newest `max_events` strictly before each of the user's labels.

Of the events between two labels of a user no more than `max_events` can be in a history, and of those after the last
label, or of users without a label, none. No others are held, so that a table of events may be larger than memory: what
is held is bounded by the labels, whatever the number of events and whatever their order.

Why a history is a function of one user's rows: time decides, and among events at one time the order in which a file
holds the user's rows, which is the same whoever else is in the file. A query's rows have no order of their own: which
of a user's rows comes first may hang on what else the database holds, so among a query's events at one time their
values decide.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from datetime import datetime
from operator import itemgetter

from fedprofile.common.interactions import Row, canonical

_Held = tuple[datetime, str, int, Row]


class Histories:
    """Takes events in any order, then gives each label's history.

    Args:
        labels: User and time of every label; each history that is asked for must be of one of them.
        max_events: Of one history.
        ordered: Whether the order in which a user's events come is the user's own; a query's is not.
    """

    def __init__(self, labels: Iterable[tuple[str, datetime]], max_events: int, *, ordered: bool = True) -> None:
        times: dict[str, set[datetime]] = {}
        for user, time in labels:
            times.setdefault(user, set()).add(time)
        self._labels = {user: sorted(those) for user, those in times.items()}
        self._max_events, self._ordered = max_events, ordered
        self._held: dict[str, dict[int, list[_Held]]] = {}
        self._sorted: dict[str, list[_Held]] = {}
        self._taken = 0

    def __contains__(self, user: object) -> bool:
        """Whether a user has a label."""
        return user in self._labels

    def add(self, user: str, time: datetime, row: Row) -> None:
        """Take an event; of events at one time those that are taken later are the newer, where there is an order.

        Args:
            user: Whose it is.
            time: When it was, or the last moment at which it can have been.
            row: Its values.
        """
        labels = self._labels.get(user, [])
        gap = bisect_right(labels, time)
        if gap == len(labels) or self._max_events == 0:
            return
        # The number makes each entry another, so that rows are never compared.
        self._taken += 1
        held = self._held.setdefault(user, {}).setdefault(gap, [])
        event = (time, "" if self._ordered else canonical(row), self._taken, row)
        if len(held) < self._max_events:
            heapq.heappush(held, event)
        else:
            heapq.heappushpop(held, event)

    def before(self, user: str, time: datetime) -> tuple[Row, ...]:
        """The newest events strictly before a label: what happened at its time may tell it. No event is taken after.

        Args:
            user: Whose label it is.
            time: When it was.

        Returns:
            At most `max_events`, the oldest first.
        """
        if user not in self._sorted:
            self._sorted[user] = sorted(event for held in self._held.pop(user, {}).values() for event in held)
        events = self._sorted[user]
        end = bisect_left(events, time, key=itemgetter(0))
        return tuple(row for *_, row in events[max(0, end - self._max_events) : end])

    def __len__(self) -> int:
        """How many events are held."""
        waiting = sum(len(held) for gaps in self._held.values() for held in gaps.values())
        return waiting + sum(map(len, self._sorted.values()))
