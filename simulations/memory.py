"""What a tenant keeps, kept in memory: for simulations, which end with their process and promise nobody anything."""

import os
import sqlite3
from pathlib import Path

from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_file import create
from fedprofile.client.ledger_schema import FORMAT, Population
from fedprofile.common.messages import Reply


def memory_ledger(population: str, user_column: str, epsilon: float, delta: float, evaluation_users: float) -> Ledger:
    """The deployed ledger, with its entries, caps and hashes, over a database in memory.

    Args:
        population: Its name.
        user_column: Says whose a row is.
        epsilon: The life's budget.
        delta: The life's budget.
        evaluation_users: Fraction of users who are only evaluated.

    Returns:
        The ledger; close it.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    create(connection, Population(FORMAT, population, user_column, evaluation_users, os.urandom(32)), epsilon, delta)
    return Ledger(Path(f"memory of {population}"), connection, lock=-1)


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
