"""What is tracked of a run, on the server and in simulations: what `history.jsonl` holds, and what was promised.

A tracker is given, and its files hold,

    of every question   who was asked, answered, was refused or dropped, as counts; bytes; seconds
    of an evaluation    each metric from the noised tables with its 95 % interval; nothing where too few users say it
    of the run          the federation's name and card hash, the base's name, the number of rounds, and each tenant's
                        promise: epsilon with delta, unit, adjacency, model and accountant in one string

and never more: `figures` reads a line of the history and nothing else, so that no update, adapter, table, count of a
tenant's users or exact figure of a simulation can get there. All of it is what the server has anyway, which is a
function of noised releases and of public things; whoever sees it learns nothing that the ledgers do not cover.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.card import FederationCard
from fedprofile.common.messages import Kind
from fedprofile.server.admission import NOT_ASKED
from fedprofile.server.app import Journal
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.server.history import RoundRecord
from fedprofile.server.trackers import Figures, NoTracker, Tracker


def figures(line: Mapping[str, Any]) -> Figures:
    """The figures of one line of the history.

    Args:
        line: See `fedprofile.server.history`.

    Returns:
        KIND and "asked", "answered", "refused", "dropped", "seconds", "bytes_up" or "bytes_down"; for each metric KIND,
        METRIC and "value", "low" or "high".
    """
    # Everybody who was asked is in one of the three, those who were silent among the dropped.
    dropped = {one["tenant"] for one in line["dropped"] if one["reason"] != NOT_ASKED}
    asked = {*line["tenants"], *(one["tenant"] for one in line["refused"]), *dropped}
    kind = line["kind"]
    found: dict[tuple[str, ...], float] = {(kind, "asked"): len(asked), (kind, "answered"): len(line["tenants"])}
    found |= {(kind, name): float(len(line[name])) for name in ("refused", "dropped")}
    found |= {(kind, name): float(line[name]) for name in ("seconds", "bytes_up", "bytes_down")}
    for name, interval in line["metrics"].items():
        if interval is not None:
            found |= {(kind, name, part): float(interval[part]) for part in ("value", "low", "high")}
    return found


class TrackedJournal:
    """A journal whose rounds are tracked as well.

    The history is what counts: it is written first, and a tracker that fails is said to have failed and left out from
    then on, while the run goes on.

    Args:
        journal: Keeps the run.
        tracker: Is told of it.
        card: The federation card.
        promises: By tenant, as they are now; nothing where no noise is drawn.
        say: Takes plain lines for the operator.
    """

    def __init__(
        self,
        journal: Journal,
        tracker: Tracker,
        card: FederationCard,
        promises: Callable[[], Mapping[str, PrivacyLoss]],
        say: Callable[[str], None],
    ) -> None:
        self._journal, self._tracker, self._promises, self._say = journal, tracker, promises, say
        self._notes = {
            "federation": card.name,
            "card": card.hash,
            "base": card.base.id,
            "rounds": str(card.training.rounds),
        }
        self._noted: dict[str, str] = {}

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Track what an earlier start of the same run has kept.

        Args:
            lines: Of the history.
        """
        for line in lines:
            self._track(line)

    def waiting(self, sentence: str) -> None:
        """See `Journal`."""
        self._journal.waiting(sentence)

    def asking(self, kind: Kind, round_number: int, tenants: int) -> None:
        """See `Journal`."""
        self._journal.asking(kind, round_number, tenants)

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """See `Journal`."""
        self._journal.answered(record, checkpoint)
        self._track(record.as_dict())

    def close(self) -> None:
        """Close the tracker."""
        with self._surviving():
            self._tracker.close()

    def traffic(self) -> tuple[int, int]:
        """See `Journal`."""
        return self._journal.traffic()

    def _track(self, line: Mapping[str, Any]) -> None:
        promises = {f"promise/{name}": str(promise) for name, promise in self._promises().items()}
        with self._surviving():
            for name, text in (self._notes | promises).items():
                if self._noted.get(name) != text:
                    self._tracker.note(name, text)
                    self._noted[name] = text
            self._tracker.log(line["round"], datetime.fromisoformat(line["started"]).timestamp(), figures(line))

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Whatever a library raises: a full disk, a folder that is gone.
            self._tracker = NoTracker()
            self._say(f"tracking has stopped ({type(error).__name__}); the run goes on without it.")
