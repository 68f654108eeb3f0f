"""A federation with honest tenants, attackers, a tenant whose budget ends and a stranger: it goes on with the rest."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedprofile.client.agreement import read_agreement
from fedprofile.client.directory import TenantDirectory
from fedprofile.client.outbox import Outbox
from fedprofile.common.messages import GENESIS, Arrays, Kind
from fedprofile.server.checkpoint import load_arrays
from fedprofile.server.directory import ServerDirectory

if TYPE_CHECKING:
    from tests.e2e.conftest import Federation

pytestmark = pytest.mark.e2e

WEIGHTS = {"acme": 60, "globex": 120, "initech": 60}
"""Declared users of the honest tenants."""
ATTACKERS = ("nan", "shape", "name", "record", "field")
TRAINED = [["acme", "globex", "initech"], ["acme", "globex"], ["acme", "globex"]]


@pytest.fixture(scope="module")
def ended(shared_federation: Callable[..., "Federation"]) -> "Federation":
    """The federation after its run."""
    everybody = [*WEIGHTS, *ATTACKERS]
    run = shared_federation(training={"rounds": 3}, rounds={"min_tenants": len(everybody), "timeout": 600})
    for name in everybody:
        run.join(name, population={"declared_users": WEIGHTS.get(name, 60)})
    run.join("stranger", enroll=False)
    _lose_two_trainings(TenantDirectory(run.tenant_dir("initech")))
    run.start_server()
    run.start_client("stranger")
    run.start_client("acme")
    run.wait_until("the stranger to be told", lambda: "does not know this tenant's key" in run.output("stranger"))
    run.start_odd_clients(**{name: name for name in ATTACKERS})
    run.start_client("globex")
    run.start_client("initech")
    run.finish("acme", "globex", "initech", "odd", "server")
    return run


def _lose_two_trainings(place: TenantDirectory) -> None:
    """As after two crashes in the middle of a training: reserved, and never released."""
    agreement = read_agreement(place)
    with agreement.open_ledger(place, registry=None) as ledger:
        segment = ledger.segment_of(agreement.segment.plan)
        assert segment is not None
        for _ in range(2):
            ledger.reserve(segment, Kind.TRAIN, 1, GENESIS)


def test_a_budget_that_ends_is_refused_and_the_others_go_on(ended: "Federation") -> None:
    assert [entry["round"] for entry in ended.trained()] == [1, 2, 3]
    assert [entry["tenants"] for entry in ended.trained()] == TRAINED
    refused = [{"tenant": "initech", "code": "budget"}]
    assert [entry["refused"] for entry in ended.trained()] == [[], refused, refused]
    budget = ended.budget("initech")
    assert budget["refusals"] == {"budget": 2}
    assert [row["round"] for row in budget["releases"] if row["payload"] and row["kind"] == "train"] == [1]
    [segment] = budget["segments"]
    assert segment["steps"] == segment["cap_steps"]
    assert 0 < budget["epsilon_spent"] <= 8.0
    # Tables have a share of their own, and the final adapter costs nothing.
    assert all("initech" in entry["tenants"] for entry in ended.history() if entry["kind"] != "train")
    assert "this run's share is spent" in ended.output("initech")


def test_what_attackers_send_is_dropped_and_the_history_says_why(ended: "Federation") -> None:
    initial = _initial(ended)
    first = next(iter(initial))
    no_record, no_field = (
        "message does not hold exactly the records 'arrays' and 'fields'",
        "record 'fields' does not hold exactly the schema's keys",
    )
    reasons = {
        "nan": "update is not finite",
        "shape": f"shape of '{first}' is not {list(initial[first].shape)}",
        "name": "names are not the adapter's",
        "record": no_record,
        "field": no_field,
    }
    for entry in ended.trained():
        assert {dropped["tenant"]: dropped["reason"] for dropped in entry["dropped"]} == reasons
    tables = [entry for entry in ended.history() if entry["kind"] == "evaluate"]
    assert [entry["round"] for entry in tables] == [0, 1, 3]
    for entry in tables:
        assert {dropped["tenant"]: dropped["reason"] for dropped in entry["dropped"]} == {
            "nan": "table is not finite",
            "shape": "table is not float64 of shape [60]",
            "name": "names are not the table's",
            "record": no_record,
            "field": no_field,
        }
        assert entry["tenants"] == sorted(WEIGHTS) and entry["metrics"]


def test_the_adapter_is_what_the_honest_tenants_alone_make_of_it(ended: "Federation") -> None:
    expected = {name: value.astype(np.float64) for name, value in _initial(ended).items()}
    updates = {name: _updates(ended, name) for name in WEIGHTS}
    for number, names in enumerate(TRAINED, start=1):
        total = sum(WEIGHTS[name] for name in names)
        for array in expected:
            expected[array] += sum(WEIGHTS[name] / total * updates[name][number][array] for name in names)
    final, _ = load_arrays(ServerDirectory(ended.server_dir).adapter)
    assert final.keys() == expected.keys()
    for name, value in final.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_an_unknown_key_waits_and_never_takes_part(ended: "Federation") -> None:
    assert ended.processes["stranger"].poll() is None
    for entry in ended.history():
        named = [*entry["tenants"], *(row["tenant"] for row in (*entry["dropped"], *entry["refused"]))]
        assert set(named) <= {*WEIGHTS, *ATTACKERS}
    assert ended.budget("stranger")["releases"] == []


def _initial(run: "Federation") -> Arrays:
    arrays, metadata = load_arrays(ServerDirectory(run.server_dir).initial_adapter)
    return {name: arrays[name] for name in metadata["order"].split()}


def _updates(run: "Federation", name: str) -> dict[int, Arrays]:
    """What an honest tenant has sent, by round."""
    folder = TenantDirectory(run.tenant_dir(name)).outbox
    replies = [Outbox(folder).get(path.stem) for path in folder.glob("*.safetensors")]
    return {reply.round: reply.arrays for reply in replies if reply is not None and reply.kind is Kind.TRAIN}
