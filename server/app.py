"""The federation's run, from the first question to the last: the same in deployment and in a simulation.

    before round 1, and after the rounds that the card names   evaluate: every tenant's noised table, summed
    rounds 1 to N                                              train: every tenant's noised update, averaged
    at the end                                                 deliver: the final adapter to every tenant

It drives a Flower `Grid` and a Flower `Strategy` and knows nothing of listeners, keys or files: a `Journal` is told
what happened and keeps it, or does not.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedprofile.common.card import FederationCard
from fedprofile.common.errors import FedprofileError, InputError, RefusalCode
from fedprofile.common.messages import Arrays, Kind
from fedprofile.server.admission import Member
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.server.evaluation import EarlyStopping, headline, merit
from fedprofile.server.history import RoundRecord
from fedprofile.server.stopping import ServerStopped
from fedprofile.server.strategy import Members, Outcome, make_strategy, numpy_of, record_of

LOOK = 0.1
"""Seconds between two looks at who is there."""

ATTEMPTS = 3
"""How often a round without a single admitted update is asked again before the run fails."""

TIME_TO_LIVE_MARGIN = 60.0
"""Seconds; a question outlives its round, so that the round's own clock decides."""


class RunFailed(FedprofileError):
    """No tenant can go on; the run stays at its last round and can be started again."""


class Journal(Protocol):
    """Is told what happens in a run."""

    def waiting(self, sentence: str) -> None:
        """The run waits, for the reason given."""

    def asking(self, kind: Kind, round_number: int, tenants: int) -> None:
        """A question goes out to so many tenants."""

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """A question is answered; `checkpoint` says where the run stands after it."""

    def traffic(self) -> tuple[int, int]:
        """Bytes that came from tenants and went to them so far."""


class NoJournal:
    """Keeps nothing."""

    def waiting(self, sentence: str) -> None:
        """See `Journal`."""

    def asking(self, kind: Kind, round_number: int, tenants: int) -> None:
        """See `Journal`."""

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """See `Journal`."""

    def traffic(self) -> tuple[int, int]:
        """See `Journal`."""
        return 0, 0


@dataclass(frozen=True)
class FederationResult:
    """What a run came to.

    Args:
        arrays: The final adapter.
        rounds: Training rounds done.
        reason: Why it is over: "rounds", "early stopping" or "budgets spent".
        records: Everything that was asked by this process, in order.
    """

    arrays: Arrays
    rounds: int
    reason: str
    records: tuple[RoundRecord, ...] = field(repr=False)


def run_federation(
    grid: Grid,
    card: FederationCard,
    members: Members,
    *,
    initial_arrays: Arrays | None = None,
    checkpoint: Checkpoint | None = None,
    journal: Journal | None = None,
    stopped: threading.Event | None = None,
    patience: float | None = None,
    late: float = 0.0,
) -> FederationResult:
    """Run a federation to its end.

    Args:
        grid: Carries the messages.
        card: The federation card.
        members: Who may take part, by node id; asked again before every question.
        initial_arrays: The adapter that round 1 starts from, where there is no checkpoint.
        checkpoint: Where to go on.
        journal: Told what happens.
        stopped: Set when the run is to stop.
        patience: Seconds to wait for `min_tenants`; None waits for ever.
        late: Seconds that the final delivery waits for tenants that are not there.

    Returns:
        The final adapter and the records.

    Raises:
        RunFailed: No update was admitted, several times over, or every tenant declined for good.
        ServerStopped: `stopped` was set.
        InputError: Too few tenants within `patience`, or nothing to start from.
    """
    if checkpoint is None:
        if initial_arrays is None:
            raise InputError("a run needs initial_arrays or a checkpoint to start from.")
        checkpoint = Checkpoint(card.hash, dict(initial_arrays), stopping=EarlyStopping(card.evaluation.patience))
    run = _Run(grid, card, members, checkpoint, journal or NoJournal(), stopped or threading.Event(), patience)
    return run.finish(late)


def build_server_app(
    card: FederationCard,
    members_of: Callable[[Grid], Mapping[int, Member]],
    initial_arrays: Arrays,
    on_result: Callable[[FederationResult], None],
    journal: Journal | None = None,
) -> ServerApp:
    """The run as a Flower `ServerApp`, for whoever has a grid of their own.

    Args:
        card: The federation card.
        members_of: Who takes part, by node id.
        initial_arrays: The adapter that round 1 starts from.
        on_result: Takes the result.
        journal: Told what happens.

    Returns:
        The app; it does not wait for tenants, all of them must be there.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        members = members_of(grid)
        on_result(
            run_federation(
                grid, card, lambda: members, initial_arrays=initial_arrays, journal=journal, patience=0.0, late=0.0
            )
        )

    return app


class _Run:
    def __init__(
        self,
        grid: Grid,
        card: FederationCard,
        members: Members,
        checkpoint: Checkpoint,
        journal: Journal,
        stopped: threading.Event,
        patience: float | None,
    ) -> None:
        self._grid, self._card, self._members, self._journal = grid, card, members, journal
        self._at, self._stopped, self._patience = checkpoint, stopped, patience
        shapes = {name: value.shape for name, value in checkpoint.arrays.items()}
        self._strategy = make_strategy(card, shapes, members, card.rounds.timeout + TIME_TO_LIVE_MARGIN)
        self._strategy.restore_optimizer(checkpoint.optimizer)
        self._strategy.marks.update(checkpoint.marks)
        self._records: list[RoundRecord] = []
        self._spent: set[str] = set()
        """Who has declined to train for its budget: it does not come back, and the others do not wait for it."""

    def finish(self, late: float) -> FederationResult:
        total = self._card.training.rounds
        schedule = self._card.evaluation.rounds(total)
        while not self._at.finished:
            if self._at.round in schedule and self._at.round not in self._at.evaluated:
                self._evaluate()
            elif self._at.round >= total:
                self._at.finished = "rounds"
            else:
                self._train()
        self._deliver(late)
        return FederationResult(self._at.result, self._at.round, self._at.finished, tuple(self._records))

    def _evaluate(self) -> None:
        number = self._at.round
        # Tenants that left after the last round must not keep its result from the others.
        self._wait_for_tenants(limit=self._card.rounds.timeout if number else None)
        stop = False

        def ask() -> Outcome:
            nonlocal stop
            record = record_of(self._at.result)
            questions = list(self._strategy.configure_evaluate(number, record, ConfigRecord(), self._grid))
            self._journal.asking(Kind.EVALUATE, number, len(questions))
            replies = self._grid.send_and_receive(questions, timeout=self._card.rounds.timeout)
            self._strategy.aggregate_evaluate(number, replies)
            self._at.evaluated.append(number)
            task = self._card.task
            stop = self._at.stopping.update(merit(self._strategy.outcome.metrics, headline(task), task))
            return self._strategy.outcome

        self._ask(Kind.EVALUATE, number, ask)
        if stop:
            self._at.finished = "early stopping"

    def _train(self) -> None:
        number = self._at.round + 1
        for _ in range(ATTEMPTS):
            self._wait_for_tenants()
            advanced = False

            def ask() -> Outcome:
                nonlocal advanced
                record = record_of(self._at.arrays)
                questions = list(self._strategy.configure_train(number, record, ConfigRecord(), self._grid))
                self._journal.asking(Kind.TRAIN, number, len(questions))
                replies = self._grid.send_and_receive(questions, timeout=self._card.rounds.timeout)
                arrays: ArrayRecord | None = self._strategy.aggregate_train(number, replies)[0]
                if arrays is not None:
                    self._at.advance(numpy_of(arrays), self._card.aggregation.average_last)
                    self._at.optimizer = self._strategy.optimizer_state()
                    advanced = True
                return self._strategy.outcome

            outcome = self._ask(Kind.TRAIN, number, ask)
            if advanced:
                return
            codes = {code for _, code in outcome.refused}
            if outcome.refused and not outcome.dropped and RefusalCode.UNAVAILABLE not in codes:
                if codes == {RefusalCode.BUDGET}:
                    self._at.finished = "budgets spent"
                    return
                listed = ", ".join(sorted(codes))
                raise RunFailed(f"round {number}: every tenant declined ({listed}); nobody is left to go on with.")
        raise RunFailed(
            f"round {number}: no update was admitted in {ATTEMPTS} attempts; see the history for why each was "
            "dropped, then start again to go on."
        )

    def _deliver(self, late: float) -> None:
        """Hand over the final adapter, for a while also to tenants that are not there yet."""
        deadline = time.monotonic() + late
        tried: set[str] = set()
        while True:
            here = {member.name for member in self._present().values()}
            everybody = {member.name for member in self._members().values()}
            if here - set(self._at.delivered) - tried:
                tried |= here

                def ask() -> Outcome:
                    questions = self._strategy.ask(
                        Kind.DELIVER, self._at.round, self._at.result, self._grid, skip=self._at.delivered
                    )
                    self._journal.asking(Kind.DELIVER, self._at.round, len(questions))
                    replies = self._grid.send_and_receive(questions, timeout=min(self._card.rounds.timeout, 60.0))
                    outcome = self._strategy.hear(replies, lambda admitted: None)
                    self._at.delivered = sorted({*self._at.delivered, *outcome.answered})
                    return outcome

                self._ask(Kind.DELIVER, self._at.round, ask)
            if everybody <= {*self._at.delivered, *tried, *self._spent} or time.monotonic() >= deadline:
                return
            self._pause()

    def _ask(self, kind: Kind, number: int, ask: Callable[[], Outcome]) -> Outcome:
        started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
        up, down = self._journal.traffic()
        outcome = ask()
        if kind is Kind.TRAIN:
            # A tenant may have no table left, after crashes, and still train.
            self._spent |= {name for name, code in outcome.refused if code is RefusalCode.BUDGET}
        self._at.marks = dict(self._strategy.marks)
        now_up, now_down = self._journal.traffic()
        record = RoundRecord(number, kind, started, time.monotonic() - clock, outcome, now_up - up, now_down - down)
        self._records.append(record)
        self._journal.answered(record, self._at)
        return outcome

    def _present(self) -> Mapping[int, Member]:
        online = set(self._grid.get_node_ids())
        return {node_id: member for node_id, member in self._members().items() if node_id in online}

    def _wait_for_tenants(self, limit: float | None = None) -> None:
        """Until `min_tenants` are there or `limit` seconds are over; before the first question `start_after` more."""
        needed = self._card.rounds.min_tenants
        start = time.monotonic()
        said = -1
        while True:
            present = {member.name for member in self._present().values()}
            count = len(present | self._spent)
            waited = time.monotonic() - start
            if (count >= needed and present) or (limit is not None and waited >= limit):
                break
            if self._patience is not None and waited >= self._patience:
                raise InputError(f"{count} of at least {needed} tenants (min_tenants) are there; add some or lower it.")
            if count != said:
                self._journal.waiting(f"waiting for tenants: {count} of at least {needed} are there.")
                said = count
            self._pause()
        if not self._records and self._at.round == 0 and self._patience is None:
            deadline = time.monotonic() + self._card.rounds.start_after
            while time.monotonic() < deadline and len(self._present()) < len(self._members()):
                self._pause()

    def _pause(self) -> None:
        if self._stopped.wait(LOOK):
            raise ServerStopped("the server was asked to stop; start it again to go on.")
