"""kill -9 of the server and of a client in the middle of a run: it goes on at the right round and nobody pays less."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e


def test_a_killed_server_goes_on_at_the_right_round(federation: Callable[..., "Federation"]) -> None:
    run = federation(training={"rounds": 4})
    for name in ("acme", "globex"):
        run.join(name)
        run.start_client(name)
    run.start_server()
    run.wait_until("two rounds", lambda: len(run.trained()) >= 2)
    run.kill("server")
    done = [entry["round"] for entry in run.trained()]
    run.start_server()
    run.finish("acme", "globex", "server")
    assert [entry["round"] for entry in run.trained()] == [1, 2, 3, 4]
    assert done == [1, 2, 3, 4][: len(done)]
    for name in ("acme", "globex"):
        trained = [row["round"] for row in run.budget(name)["releases"] if row["kind"] == "train"]
        # A question that was answered before the kill is answered again with the same bytes, at no cost.
        assert trained == [1, 2, 3, 4]


def test_a_killed_client_answers_the_round_it_was_killed_in(federation: Callable[..., "Federation"]) -> None:
    run = federation(training={"rounds": 3, "local_steps": 40}, rounds={"timeout": 250})
    for name in ("acme", "globex"):
        run.join(name, run={"spare_rounds": 2})
        run.start_client(name)
    run.start_server()

    def reserved() -> int:
        return sum(row["kind"] == "train" for row in run.budget("globex")["releases"])

    run.wait_until("a reservation of the second round", lambda: len(run.trained()) == 1 and reserved() >= 2)
    run.kill("globex")
    run.start_client("globex")
    run.finish("acme", "globex", "server")
    assert [sorted(entry["tenants"]) for entry in run.trained()] == [["acme", "globex"]] * 3
    # The reservation of the round that was cut off stays: the ledger never counts less than what may have left.
    assert 3 <= reserved() <= 4
    assert run.budget("globex")["epsilon_spent"] <= 8.0
