"""Kills the processes of live federations, again and again, and checks after each kill that nothing was lost.

One server and two tenants' clients run the real commands with real TLS, training, SQLite and files. Each start of a
process has a plan of its own (`tests.crash.plans`): it dies, or its disk fails, at one point, or it is killed at a
random moment. Whatever ended is started again at once, the others run on, and the run must come to its end; then the
next federation follows, until enough were killed. A process whose point is not reached in time is killed where it is,
and so is one whose disk has failed, a moment later.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.crash.arrivals import ArrivalLog, log_arrivals
from tests.crash.checks import Checks, Problem
from tests.crash.forks import fork
from tests.crash.places import TENANTS, Places, lay_out
from tests.crash.plans import RANDOM, Plan, Role
from tests.crash.points import Points, watch_files, watch_ledger
from tests.crash.tally import Tally

from fedprofile.client import cli as client_cli
from fedprofile.server import cli as server_cli

ROUNDS = 6
"""Of one federation."""
LOOK = 0.02
REACH = 10.0
"""Seconds that a process has to reach its point."""
STALLED = 240.0
"""Seconds without a kill and without progress after which a run counts as lost."""
COSTS_EVERY = 10
"""Comparing epsilons takes as long as a kill, so it is not done after each."""

Say = Callable[[str], None]


@dataclass
class Process:
    """A running command.

    Args:
        name: "server" or the tenant's.
        pid: Its process id.
        plan: What happens to it; None for nothing.
        notes: What it has passed; see `Points`.
        first: Whether it is the first of its directory.
        kill_at: When it is killed from outside, on the monotonic clock.
    """

    name: str
    pid: int
    plan: Plan | None
    notes: Path
    first: bool
    kill_at: float
    started: float = field(default_factory=time.monotonic)
    failed: bool = False
    """Whether its disk has failed already."""
    killed: bool = False
    """Whether it was killed from outside."""

    @property
    def role(self) -> Role:
        """What it is."""
        return "server" if self.name == "server" else "client"

    def noted(self, what: str) -> list[Any]:
        """Its notes of one kind: "seen", "tried" or "fired"."""
        lines = self.notes.read_bytes().splitlines() if self.notes.exists() else []
        return [note[what] for note in map(json.loads, lines) if what in note]


def run_federations(work: Path, base: Path, tally: Tally, kills: int, until: float, draw: random.Random) -> int:
    """Run federations until enough was killed; at least one.

    Args:
        work: Where they are made; those in which something was found are kept.
        base: The base model's folder.
        tally: Counts, and keeps the log.
        kills: How many.
        until: When to stop killing, on the monotonic clock.
        draw: Decides what is left to chance.

    Returns:
        The number of kills.
    """
    done, number = 0, 0
    while True:
        number += 1
        places = lay_out(work / f"federation{number}", base, ROUNDS)
        run = LiveFederation(places, tally, kills - done, until, draw)
        run.run()
        done += run.kills
        if done >= kills or time.monotonic() > until or tally.problems["stalled"]:
            return done
        if not run.found:
            shutil.rmtree(places.root)


class LiveFederation:
    """One federation, from its start to its end.

    Args:
        places: Where it lies.
        tally: Counts, and keeps the log.
        most: How many kills at most.
        until: When to stop killing, on the monotonic clock.
        draw: Decides what is left to chance.
    """

    def __init__(self, places: Places, tally: Tally, most: int, until: float, draw: random.Random) -> None:
        self._places, self._tally, self._most, self._until, self._draw = places, tally, most, until, draw
        self.kills = 0
        self.found: set[Problem] = set()
        self._checks = Checks(places)
        self._processes: dict[str, Process] = {}
        self._starts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._witness = next(iter(TENANTS))
        self._second: Process | None = None
        self._second_done = False
        self._progress: tuple[object, ...] = ()
        self._looked = self._moved = time.monotonic()

    def run(self) -> None:
        """Start everything, and kill and start again until the run is over."""
        try:
            for name in ("server", *TENANTS):
                self._start(name)
            while self._processes and not self._stalled():
                for process in list(self._processes.values()):
                    self._look_at(process)
                if not self._second_done:
                    self._try_a_second()
                time.sleep(LOOK)
            stalled = [Problem("stalled", f"{', '.join(self._processes)}: nothing moves any more.")]
            problems = stalled if self._processes else self._new(self._checks.run(self._faults, end=True))
            self._add("end", problems=problems, seen={name: sorted(points) for name, points in self._seen.items()})
        finally:
            for process in (*self._processes.values(), *([self._second] if self._second else [])):
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)

    def _start(self, name: str) -> None:
        first = not self._starts[name]
        # The first client lives until a second one was refused on its directory.
        plan = None if name == self._witness and not self._second_done else self._plan(name, first)
        self._processes[name] = self._forked(name, plan, first)

    def _plan(self, name: str, first: bool) -> Plan | None:
        pending = sum(process.plan is not None for process in self._processes.values())
        if self.kills + pending >= self._most or time.monotonic() > self._until or self._has_nothing_left(name):
            return None
        return self._tally.coverage.next("server" if name == "server" else "client", first, self._draw)

    def _has_nothing_left(self, name: str) -> bool:
        """What only signs off, or waits for others to, reaches hardly any point."""
        if name == "server":
            return bool(self._starts[self._witness]) and not set(TENANTS) & set(self._processes)
        return name in self._checks.delivered

    def _forked(self, name: str, plan: Plan | None, first: bool, output: str = "") -> Process:
        self._starts[name] += 1
        notes = self._places.notes / f"{name}-{self._starts[name]}.jsonl"
        run = partial(_run_command, self._places, name, plan, notes)
        pid = fork(run, self._places.output(output or name), self._places.environment)
        process = Process(name, pid, plan, notes, first, float("inf"))
        if plan is not None and self._tally.coverage.seen(process.role):
            process.kill_at = time.monotonic() + (REACH if plan.point != RANDOM else self._moment())
        return process

    def _moment(self) -> float:
        return self._draw.uniform(0.05, 3.0)

    def _look_at(self, process: Process) -> None:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if process.plan is not None and process.plan.action != "kill" and not process.failed:
            self._look_for_a_fault(process, process.plan)
        if pid:
            del self._processes[process.name]
            self._ended(process, os.waitstatus_to_exitcode(status))
        elif time.monotonic() > process.kill_at:
            process.killed, process.kill_at = True, float("inf")
            os.kill(process.pid, signal.SIGKILL)

    def _look_for_a_fault(self, process: Process, plan: Plan) -> None:
        if process.noted("fired"):
            process.failed, process.kill_at = True, time.monotonic() + self._draw.uniform(0.2, 2.0)
            self._faults[process.name] += 1
            self._add("fault", process, plan)

    def _ended(self, process: Process, code: int) -> None:
        points = set(process.noted("seen"))
        self._seen[f"{process.role} {'first' if process.first else 'later'}"] |= points
        self._tally.coverage.saw(process.role, process.first, points)
        self._moved = time.monotonic()
        planned = process.plan is not None and process.plan.action == "kill" and bool(process.noted("fired"))
        torn = code == -signal.SIGXFSZ and process.noted("tried")
        if torn or (code == -signal.SIGKILL and (planned or process.killed)):
            self.kills += 1
            costs = self.kills % COSTS_EVERY == 0
            problems = self._new(self._checks.run(self._faults, costs=costs))
            self._add("kill", process, process.plan if planned or torn else Plan("kill"), problems)
        elif code:
            self._ended_by_itself(process, code)
        if code:
            self._start(process.name)

    def _ended_by_itself(self, process: Process, code: int) -> None:
        """A process ends where its disk fails it, and a server where no tenant's disk lets it answer."""
        excused = code > 0 and (process.failed or (process.role == "server" and bool(self._faults)))
        sentence = f"{process.name} ended with {code}; see {self._places.output(process.name)}."
        problems = self._checks.run(self._faults)
        if not excused:
            problems.append(Problem("unexpected_exits", sentence))
        self._add("exit", process, problems=self._new(problems))
        time.sleep(0.2)

    def _new(self, problems: list[Problem]) -> list[Problem]:
        new = [problem for problem in problems if problem not in self.found]
        self.found.update(new)
        return new

    def _add(
        self,
        event: str,
        process: Process | None = None,
        plan: Plan | None = None,
        problems: list[Problem] | None = None,
        seen: dict[str, list[str]] | None = None,
    ) -> None:
        name, seconds = ("", 0.0) if process is None else (process.name, time.monotonic() - process.started)
        number, federation = self._checks.round, self._places.root.name
        self._tally.add(
            event, federation, process=name, plan=plan, round_number=number, seconds=seconds, problems=problems or [],
            seen=seen, leftovers=self._checks.leftovers() if event == "end" else 0,
        )  # fmt: skip
        what = f"{plan.action} at {plan.point}" if plan is not None and plan.point != RANDOM else event
        print(f"{self._tally.events['kill']:5} {federation} round {number} of {ROUNDS}: {name} {what}", flush=True)
        for problem in problems or []:
            print(f"      {problem.kind}: {problem.sentence}", flush=True)

    def _try_a_second(self) -> None:
        """A second client on the first one's directory is refused while that one runs."""
        witness = self._processes[self._witness]
        output = self._places.output(f"{self._witness}-second")
        if self._second is None:
            if "connected:" in self._places.output(self._witness).read_text():
                self._second = self._forked(self._witness, None, False, output.stem)
            return
        pid, status = os.waitpid(self._second.pid, os.WNOHANG)
        if not pid:
            return
        self._second, self._second_done = None, True
        if os.waitstatus_to_exitcode(status) != 2 or "already runs" not in output.read_text():
            self._add("exit", problems=self._new([Problem("second_clients", f"it was not refused; see {output}.")]))
        witness.plan = self._plan(self._witness, False) and Plan("kill")
        if witness.plan is not None and self._tally.coverage.seen("client"):
            witness.kill_at = time.monotonic() + self._moment()

    def _stalled(self) -> bool:
        now = time.monotonic()
        if now - self._looked > 1:
            self._looked = now
            if (found := self._checks.progress) != self._progress:
                self._progress, self._moved = found, now
                self._end_lessons()
        return now - self._moved > STALLED

    def _end_lessons(self) -> None:
        """Where no point is known yet, the first processes live until they have passed most of them."""
        for process in self._processes.values():
            waits = process.plan is not None and process.kill_at == float("inf") and not process.killed
            if waits and self._checks.round > 1:
                process.kill_at = time.monotonic() + self._moment()


def _run_command(places: Places, name: str, plan: Plan | None, notes: Path) -> None:
    """What a fork does: the command's own `main`, with points around what it writes."""
    points = Points(places.root, plan, notes)
    if name == "server":
        log_arrivals(ArrivalLog(places.received), points.reach)
        program, main, folder = "flower-server", server_cli.main, places.server.root
    else:
        program, main, folder = "flower-client", client_cli.main, places.tenant(name).root
    watch_files(points)
    watch_ledger(points)
    sys.argv = [program, "start", "--dir", str(folder)]
    main()
