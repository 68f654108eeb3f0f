"""What has happened so far, in this run and, where it resumes, in those before: one JSON line for each kill.

{"event": "kill" | "fault" | "exit" | "end", "run", "at", "federation", "process", "action", "point", "occurrence",
 "round", "seconds", "problems": {kind: count}, "sentences": [...]}; an "end", of a federation, has "seen", the points
that processes have passed, and "leftovers", half-written files that killed processes have left.
"""

import json
import os
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.crash.checks import Problem
from tests.crash.plans import Coverage, Plan, Role

FIRST = ("under_counts", "lost_rounds", "double_rounds")
"""What the last line begins with, after the kills."""

OTHERS = ("paid_twice", "wrong_adapters", "unexpected_exits", "second_clients", "stalled")


class Tally:
    """Counts, and the log.

    Args:
        path: The log; lines are appended.
        resume: Whether what it holds counts as well.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.coverage = Coverage()
        self.events: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self._path, self._run = path, datetime.now(UTC).isoformat(timespec="seconds")
        self._began = time.monotonic()
        self._kills_here = 0
        self.leftovers = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._count(json.loads(line))
        self._kills_here = 0

    def add(
        self,
        event: str,
        federation: str,
        *,
        process: str = "",
        plan: Plan | None = None,
        round_number: int = 0,
        seconds: float = 0.0,
        problems: list[Problem],
        seen: dict[str, list[str]] | None = None,
        leftovers: int = 0,
    ) -> None:
        """Count an event, and append it to the log.

        Args:
            event: See the module's docstring.
            federation: Its folder's name.
            process: Which process.
            plan: What happened to it.
            round_number: How many rounds were done.
            seconds: How long the process had run.
            problems: What was found for the first time after it.
            seen: Points that processes have passed, by role and whether it was the first start.
            leftovers: Half-written files that killed processes have left.
        """
        counts = Counter(problem.kind for problem in problems)
        line: dict[str, Any] = {"event": event, "run": self._run, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        line |= {"federation": federation, "process": process, "round": round_number, "seconds": round(seconds, 2)}
        if plan is not None:
            line |= {"action": plan.action, "point": plan.point, "occurrence": plan.occurrence}
        line |= {"problems": dict(counts), "sentences": [problem.sentence for problem in problems]}
        if seen is not None:
            line |= {"seen": seen, "leftovers": leftovers}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.events[line["event"]] += 1
        self._kills_here += line["event"] == "kill"
        self.problems.update(line["problems"])
        self.leftovers += line.get("leftovers", 0)
        role: Role = "server" if line["process"] == "server" else "client"
        if "point" in line:
            self.coverage.hit(role, Plan(line["action"], line["point"], line["occurrence"]))
        for name, points in line.get("seen", {}).items():
            kind, _, when = name.partition(" ")
            self.coverage.saw("server" if kind == "server" else "client", when == "first", points)

    @property
    def failed(self) -> bool:
        """Whether anything was found."""
        return any(self.problems.values())

    def lines(self) -> list[str]:
        """The coverage by point, and the line that says it all."""
        hit, known = self.coverage.reached()
        seconds = (time.monotonic() - self._began) / max(self._kills_here, 1)
        counts = [f"kills={self.events['kill']}", *(f"{kind}={self.problems[kind]}" for kind in FIRST)]
        counts += [f"{kind}={self.problems[kind]}" for kind in OTHERS]
        counts += [f"disk_faults={self.events['fault']}", f"federations={self.events['end']}"]
        counts += [f"points_killed_at={hit}/{known}", f"leftover_files={self.leftovers}"]
        counts += [f"seconds_per_kill={seconds:.1f}"]
        return [*self.coverage.table(), " ".join(counts)]
