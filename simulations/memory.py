"""What a tenant keeps, kept in memory: for simulations, which end with their process and promise nobody anything."""

import os
import sqlite3
from pathlib import Path

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_file import create
from fedprofile.client.ledger_schema import FORMAT, Population, Segment, read_entries
from fedprofile.common.accounting import PrivacyLoss, compose
from fedprofile.common.messages import Reply
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.people import TenantEvents


class MemoryLedger(Ledger):
    """The deployed ledger, with its entries, caps and hashes, over a database in memory.

    Args:
        population: Its name.
        tenant: Whose budget, column of users and fraction of evaluation users it holds.
    """

    def __init__(self, population: str, tenant: TenantFile) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        share = tenant.privacy.evaluation_users
        whose = Population(FORMAT, population, tenant.columns.user, share, os.urandom(32))
        create(connection, whose, tenant.budget.epsilon, tenant.life_delta)
        super().__init__(Path(f"memory of {population}"), connection, lock=-1)

    def released(self, segment: Segment) -> TenantEvents:
        """What a segment has released."""
        return TenantEvents.of(entry for entry in read_entries(self._connection) if entry.segment == segment.number)

    def spent(self, segment: Segment) -> PrivacyLoss:
        """Composed over a segment's releases: the larger of training and evaluation, whose users are disjoint."""
        events = self.released(segment)
        losses = [compose(part, segment.plan.delta) for part in (events.train, events.evaluate)]
        return max(losses, key=lambda loss: loss.epsilon)


class LastReply:
    """An outbox that holds one reply: a server that nothing can kill asks the same question at most twice in a row."""

    def __init__(self) -> None:
        self._key = ""
        self._reply: Reply | None = None

    def get(self, key: str) -> Reply | None:
        """The finished reply to a question, if it was the last one."""
        return self._reply if key == self._key else None

    def holds(self, key: str) -> bool:
        """Whether it was the last question."""
        return self._reply is not None and key == self._key

    def put(self, key: str, reply: Reply) -> None:
        """Keep a finished reply instead of the one before."""
        self._key, self._reply = key, reply
