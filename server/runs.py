"""A running server: listeners, roster, and the federation's run, held together.

The run exists twice: as our own loop (`app.run_federation`) and as an entry in Flower's link state, without which the
Fleet API refuses every reply. The entry has no code attached; a heartbeat keeps it alive.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.task_identity import TaskIdentity

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import FedprofileError
from fedprofile.common.messages import Arrays
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, run_federation
from fedprofile.server.checkpoint import Checkpoint, read_checkpoint
from fedprofile.server.directory import ServerDirectory
from fedprofile.server.enrolment import RosterEntry, key_bytes, read_roster
from fedprofile.server.evaluation import EarlyStopping
from fedprofile.server.fleet import Fleet
from fedprofile.server.grid import FleetGrid
from fedprofile.server.health import HealthService
from fedprofile.server.history import cut_to, read_lines
from fedprofile.server.journal import DirectoryJournal, Say
from fedprofile.server.linkstate import FederationLinkState
from fedprofile.server.stopping import ServerStopped
from fedprofile.server.trackers import open_tracker, usable
from fedprofile.server.tracking import TrackedJournal

HEARTBEAT = 10.0
ROSTER_LOOK = 0.5
"""Seconds between two looks at `tenants.json`."""


class LiveRoster:
    """The roster as the link state sees it, kept up to date by a thread.

    Args:
        path: `tenants.json`.
        state: Where keys are let in and shut out.
        card_hash: Tenants that agreed to another card stay out.
    """

    def __init__(self, path: Path, state: FederationLinkState, card_hash: str) -> None:
        self._path, self._state, self._card_hash = path, state, card_hash
        self._members: dict[int, Member] = {}
        self._entries: tuple[RosterEntry, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Read the roster again where it changed."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return
        roster = read_roster(self._path)
        members: dict[int, Member] = {}
        for entry in roster.tenants:
            enrolled = entry.enrolled
            if enrolled is None or not entry.active or enrolled.card_hash != self._card_hash:
                continue
            node_id = self._state.enrol(key_bytes(enrolled.public_key), entry.name)
            members[node_id] = Member(entry.name, enrolled.declared_users, enrolled.evaluation_noise)
        with self._lock:
            gone = set(self._members) - set(members)
            self._members, self._entries, self._seen = members, roster.tenants, seen
        for node_id in gone:
            self._state.revoke(node_id)

    def members(self) -> Mapping[int, Member]:
        """Who may take part, by node id."""
        with self._lock:
            return dict(self._members)

    def entries(self) -> tuple[RosterEntry, ...]:
        """Everybody on the roster."""
        with self._lock:
            return self._entries


class RunEntry:
    """The run in Flower's link state.

    Args:
        state: The link state.
    """

    def __init__(self, state: FederationLinkState) -> None:
        self._state = state
        run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        [self.run] = state.get_run_info(run_ids=[run_id])
        assert self.run.primary_task_id is not None
        self._task_id: int = self.run.primary_task_id
        state.claim_task(self._task_id)
        state.activate_task(self._task_id)
        # Message() asks this process-wide identity who is speaking.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, self._task_id, SUPERLINK_NODE_ID

    def beat(self) -> None:
        """Say that the run is alive."""
        self._state.acknowledge_task_heartbeat(self._task_id)

    def end(self, completed: bool) -> None:
        """Say that it is over; from then on replies to it are refused."""
        self._state.finish_task(self._task_id, SubStatus.COMPLETED if completed else SubStatus.STOPPED, "")


def serve(
    directory: ServerDirectory, initial_arrays: Arrays | None, stopped: threading.Event, say: Say
) -> FederationResult:
    """Run the federation of a directory to its end.

    Args:
        directory: The server's.
        initial_arrays: The adapter that round 1 starts from; not needed where there is a checkpoint.
        stopped: Set when the server is to stop.
        say: Takes plain lines for the operator.

    Returns:
        What the run came to.

    Raises:
        InputError: Settings, certificates or state cannot be used.
        ServerStopped: `stopped` was set.
        RunFailed: See `run_federation`.
    """
    card, settings = directory.card(), directory.settings()
    tracking = usable(settings.tracking, say)
    with ExitStack() as stack:
        checkpoint = _resume(directory, card, initial_arrays)
        health = HealthService(
            host=settings.listen, port=settings.health_port, certificate=directory.certificate, key=directory.key
        )
        fleet = Fleet(
            host=settings.listen,
            port=settings.port,
            admin_port=settings.admin_port,
            certificate=directory.certificate,
            key=directory.key,
            operator_token=directory.operator_token.read_text().strip(),
            largest_body=settings.max_body_mib << 20,
        )
        # Before anybody can connect: a tenant that comes back after a restart must find its key and its run.
        roster = LiveRoster(directory.tenants, fleet.state, card.hash)
        entry = RunEntry(fleet.state)
        journal = DirectoryJournal(directory, card, checkpoint, fleet, roster.entries, say)
        fleet.start()
        stack.callback(fleet.stop)
        health.start()
        stack.callback(health.stop)
        over = threading.Event()
        helper = threading.Thread(target=_keep_alive, args=(roster, entry, journal, over), daemon=True)
        helper.start()
        stack.callback(helper.join, 5)
        stack.callback(over.set)
        say(
            f"federation '{card.name}': tenants at {settings.host}:{settings.port}, admin on 127.0.0.1:"
            f"{settings.admin_port}, health on port {settings.health_port}."
        )
        if checkpoint.round or checkpoint.evaluated:
            say(f"going on after round {checkpoint.round} of {card.training.rounds}.")
        health.set_serving(True)
        tracker = open_tracker(tracking, directory.root, title=card.name, run="run")
        tracked = TrackedJournal(journal, tracker, card, lambda: _promises(roster), say)
        stack.callback(tracked.close)
        # Every start is a run of its own that holds all rounds so far.
        tracked.replay(read_lines(directory.history))
        grid = FleetGrid(fleet.state, entry.run, stopped, settings.patience)
        completed, ending = False, "failed"
        try:
            result = run_federation(
                grid,
                card,
                roster.members,
                checkpoint=checkpoint,
                journal=tracked,
                stopped=stopped,
                late=settings.patience,
            )
            completed, ending = True, "finished"
            _see_off(fleet.state, stopped, settings.patience)
            return result
        except ServerStopped:
            ending = "stopped"
            raise
        except FedprofileError as error:
            journal.waiting(str(error))
            raise
        finally:
            health.set_serving(False)
            entry.end(completed)
            journal.end(ending)


def _promises(roster: LiveRoster) -> dict[str, PrivacyLoss]:
    return {
        entry.name: PrivacyLoss(**entry.enrolled.promise.model_dump())
        for entry in roster.entries()
        if entry.enrolled is not None
    }


def _resume(directory: ServerDirectory, card: FederationCard, initial_arrays: Arrays | None) -> Checkpoint:
    found = read_checkpoint(directory.checkpoint, card.hash, card.evaluation.patience)
    if found is None:
        assert initial_arrays is not None, "a first start needs the initial adapter"
        found = Checkpoint(card.hash, dict(initial_arrays), stopping=EarlyStopping(card.evaluation.patience))
    cut_to(directory.history, found.history_length)
    return found


def _see_off(state: FederationLinkState, stopped: threading.Event, patience: float) -> None:
    """Stay until tenants have left: one whose answer has arrived still has to confirm it and to sign off."""
    deadline = time.monotonic() + patience
    while state.online() and time.monotonic() < deadline and not stopped.wait(0.05):
        pass


def _keep_alive(roster: LiveRoster, entry: RunEntry, journal: DirectoryJournal, over: threading.Event) -> None:
    beats = 0.0
    while not over.wait(ROSTER_LOOK):
        try:
            roster.refresh()
        except FedprofileError as error:
            # The roster of before stays in force; the operator sees why.
            logging.getLogger(__name__).error("%s", error)
        beats += ROSTER_LOOK
        if beats >= HEARTBEAT:
            entry.beat()
            beats = 0.0
        journal.refresh()
