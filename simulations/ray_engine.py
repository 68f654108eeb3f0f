"""The same federation on Flower's own simulation engine: Ray's actors instead of one process.

For experiments that are beyond one process: Ray spreads tenants over the cores, the GPUs and the machines that it is
given. Each actor loads the base and answers one message at a time, with the same client logic and the same trainer (a
cohort of one); since any actor may get any tenant's next message, ledgers and outboxes are files in a folder that all
of them see. The draws are those of the in-process engine, so the numbers are its own up to floating-point rounding.
"""

import logging
import os
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedprofile.client.app import client_app
from fedprofile.client.ledger import Ledger
from fedprofile.client.ledger_summary import summary
from fedprofile.client.outbox import Outbox
from fedprofile.common.messages import Arrays
from fedprofile.server.admission import Member
from fedprofile.server.app import FederationResult, Journal, build_server_app
from fedprofile.simulations.cell_results import PreparedCell
from fedprofile.simulations.cells import CellRunner
from fedprofile.simulations.cohort import CohortTrainer
from fedprofile.simulations.experiment import EngineSpec, Experiment
from fedprofile.simulations.federation import SimulatedFederation, SimulatedTenant, member_of, open_tenant

LOOK = 0.1
"""Seconds between two looks at who is there."""

WHO = "query.partition"
"""Asks a node which tenant it is."""


def run_on_ray(
    experiment: Experiment, prepared: PreparedCell, initial_arrays: Arrays, folder: Path, journal: Journal
) -> SimulatedFederation:
    """Run a federation to its end.

    Args:
        experiment: Of the cell.
        prepared: The cell with its card and tenants.
        initial_arrays: The adapter that round 1 starts from.
        folder: For ledgers and outboxes; empty, and reachable from every machine that Ray uses.
        journal: Told what happens.

    Returns:
        As `run_in_process`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    card, tenants = prepared.card, prepared.tenants
    members = [member_of(card, tenant) for tenant in tenants]
    results: list[FederationResult] = []
    server = build_server_app(card, lambda grid: _nodes(grid, members), initial_arrays, results.append, journal)
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Ray's, on what its next version does.
            warnings.simplefilter("ignore", FutureWarning)
            run_simulation(
                server,
                _client_app(experiment.model_dump_json(), prepared.cell.name, folder),
                num_supernodes=len(tenants),
                backend_config=_backend(experiment.engine),
            )
    finally:
        log.setLevel(level)
    [result] = results
    spent = {}
    if prepared.cell.noise:
        spent = {tenant.name: summary(_ledger(folder, tenant)).spent for tenant in tenants}
    return SimulatedFederation(result.arrays, result.rounds, result.reason, result.records, spent)


def _nodes(grid: Grid, members: list[Member]) -> dict[int, Member]:
    """Which node is which tenant: Flower tells it to the clients alone, so they are asked."""
    while len(ids := list(grid.get_node_ids())) < len(members):
        time.sleep(LOOK)  # Flower starts the server app first.
    questions = [Message(RecordDict(), node, WHO) for node in ids]
    found = {}
    for reply in grid.send_and_receive(questions):
        record = reply.content["partition"]
        assert isinstance(record, ConfigRecord)
        found[reply.metadata.src_node_id] = members[int(str(record["id"]))]
    return dict(sorted(found.items(), key=lambda item: item[1].name))


def _client_app(experiment: str, cell: str, folder: Path) -> ClientApp:
    """What travels to the actors: which experiment and cell, and no data."""
    app = client_app(lambda message, context: _answer(experiment, cell, folder, _partition(context), message))

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        return Message(RecordDict({"partition": ConfigRecord({"id": _partition(context)})}), reply_to=message)

    return app


def _answer(experiment: str, cell: str, folder: Path, partition: int, message: Message) -> Message:
    runner, prepared, trainer = _prepared(experiment, cell)
    model, cache = runner.base(prepared.card).model(prepared.card)
    tenant = prepared.tenants[partition]
    file = tenant.settings
    with Ledger.open(
        _ledger(folder, tenant),
        population=tenant.name,
        user_column=file.columns.user,
        epsilon=file.budget.epsilon,
        delta=file.life_delta,
        evaluation_users=file.privacy.evaluation_users,
    ) as ledger:
        outbox = Outbox(folder / f"{tenant.name}-outbox")
        seed, noise = prepared.cell.seed, prepared.cell.noise
        opened, _ = open_tenant(prepared.card, model, cache, trainer, tenant, ledger, outbox, seed=seed, noise=noise)
        return opened.app.answer(message)


@lru_cache(maxsize=1)
def _prepared(experiment: str, name: str) -> tuple[CellRunner, PreparedCell, CohortTrainer]:
    """An actor keeps the base and the records of the cell that it works on."""
    found = Experiment.model_validate_json(experiment)
    [cell] = [cell for cell in found.cells() if cell.name == name]
    runner = CellRunner(found)
    prepared = runner.prepare(cell)
    model, cache = runner.base(prepared.card).model(prepared.card)
    return runner, prepared, CohortTrainer(model, cache, found.engine.tokens_at_once)


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _ledger(folder: Path, tenant: SimulatedTenant) -> Path:
    return folder / f"{tenant.name}.sqlite"


def _backend(engine: EngineSpec) -> Any:
    return {
        "init_args": {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"},
        "client_resources": {"num_cpus": engine.ray_cpus, "num_gpus": engine.ray_gpus},
    }
