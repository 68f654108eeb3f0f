"""What happens to one process, and which point's turn it is.

A point is `label:operation:phase`, such as `outbox:rename:before`. Points are not listed anywhere: every process tells
which ones it passes (`tests.crash.points`), so that a write that is added to the product is found, and its turn comes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Action = Literal["kill", "full", "readonly"]
"""kill -9, a disk that is full once, a disk that is read-only for a moment."""

Role = Literal["client", "server"]

_ACTIONS: tuple[Action, ...] = ("kill", "full", "readonly")
_ROLES: tuple[Role, ...] = ("client", "server")

RANDOM = "at random"
"""Stands for a point where a process is killed at a random moment."""

_PHASES = ("before", "half", "inside", "after")
_MINOR = ("log", "lock", "status", "cache", "home", "secret", "state", "other")
"""Labels whose turn comes less often."""


@dataclass(frozen=True)
class Plan:
    """What happens to one process.

    Args:
        action: What.
        point: Where, or `RANDOM`.
        occurrence: The how manyeth time that the process passes the point.
    """

    action: Action
    point: str = RANDOM
    occurrence: int = 1


class Coverage:
    """The points that are known, and how often each was tried and hit."""

    def __init__(self) -> None:
        self.hits: Counter[tuple[Role, Action, str]] = Counter()
        self._tries: Counter[tuple[Role, Action, str]] = Counter()
        self._seen: defaultdict[tuple[Role, bool], set[str]] = defaultdict(set)

    def saw(self, role: Role, first: bool, points: Iterable[str]) -> None:
        """Take note of the points that a process has passed.

        Args:
            role: What it was.
            first: Whether it was the first of its directory, which makes files that later ones find.
            points: All of them.
        """
        self._seen[role, first].update(points)

    def hit(self, role: Role, plan: Plan) -> None:
        """Take note that a plan was carried out."""
        self.hits[role, plan.action, plan.point] += 1

    def seen(self, role: Role) -> set[str]:
        """All known points."""
        return self._seen[role, True] | self._seen[role, False]

    def next(self, role: Role, first: bool, draw: random.Random) -> Plan:
        """Whose turn it is.

        Args:
            role: What the process is.
            first: Whether it is the first of its directory.
            draw: Decides between equals.

        Returns:
            The plan; at random moments where no point is known yet, and now and then.
        """
        action: Action = draw.choices(("kill", "full", "readonly"), (6, 1, 1))[0]
        points = self._points(role, first, action)
        if not points or (action == "kill" and draw.random() < 0.15):
            return self._tried(role, Plan("kill"))
        weights = {point: (self._weight(role, action, point), draw.random()) for point in points}
        occurrence = draw.choices((1, 2, 3), (8, 2, 1))[0]
        return self._tried(role, Plan(action, min(points, key=lambda point: weights[point]), occurrence))

    def _points(self, role: Role, first: bool, action: Action) -> list[str]:
        first_only = self._seen[role, True] - self._seen[role, False]
        known = first_only if first and first_only else self._seen[role, False] or self._seen[role, True]
        return sorted(point for point in known if possible(action, point))

    def _weight(self, role: Role, action: Action, point: str) -> int:
        """Fewest first; what was tried and not reached stands back."""
        tried, hit = self._tries[role, action, point], self.hits[role, action, point]
        return (1 + 2 * point.startswith(_MINOR)) * (1 + max(tried, hit) + 2 * max(tried - hit, 0))

    def _tried(self, role: Role, plan: Plan) -> Plan:
        self._tries[role, plan.action, plan.point] += 1
        return plan

    def table(self) -> list[str]:
        """One line for each operation: how often what happened in which phase."""
        lines = []
        for role in _ROLES:
            lines.append(f"{role:6} {RANDOM:28} kill {self.hits[role, 'kill', RANDOM]}")
            for place in sorted({point.rpartition(":")[0] for point in self.seen(role)}):
                parts = [
                    f"{action} {phase} {self.hits[role, action, f'{place}:{phase}']}"
                    for action in _ACTIONS
                    for phase in _PHASES
                    if f"{place}:{phase}" in self.seen(role) and possible(action, f"{place}:{phase}")
                ]
                lines.append(f"{role:6} {place:28} {', '.join(parts)}")
        return lines

    def reached(self) -> tuple[int, int]:
        """How many of the known points a kill has hit, and how many there are."""
        points = [(role, point) for role in _ROLES for point in self.seen(role)]
        return sum(self.hits[role, "kill", point] > 0 for role, point in points), len(points)


def possible(action: Action, point: str) -> bool:
    """Whether something can happen at a point: a write can fail before it is done or in its middle.

    >>> possible("full", "outbox:write:half"), possible("full", "outbox:write:after"), possible("full", "at random")
    (True, False, False)
    """
    return action == "kill" or (point.endswith((":before", ":half")) and not point.startswith("reply:"))
