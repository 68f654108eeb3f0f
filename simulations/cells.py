"""Running one cell of an experiment: from its settings to a JSON of what came out.

Everything in the JSON but `timing` and `machine` is a function of the cell and the data: the same on the same machine
with the same number of threads, bit for bit, whether the experiment was stopped in between or not.
"""

import hashlib
import logging
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedprofile.common.accounting import PrivacyLoss
from fedprofile.common.adapters import arrays_hash
from fedprofile.common.card import FederationCard
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Arrays
from fedprofile.server.app import Journal, NoJournal
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.server.history import RoundRecord, metrics_as_dict
from fedprofile.server.trackers import NoTracker, Tracker, open_tracker
from fedprofile.server.tracking import TrackedJournal
from fedprofile.simulations.arms import ArmResult, pooled, run_alone
from fedprofile.simulations.cell_results import (
    PreparedCell,
    people,
    picture,
    predictions,
    thresholds,
)
from fedprofile.simulations.exact_metrics import exact_metrics
from fedprofile.simulations.experiment import Cell, DataSpec, EngineSpec, Experiment
from fedprofile.simulations.federation import run_in_process
from fedprofile.simulations.known_population import bayes_probability, known_population
from fedprofile.simulations.partitions import spread
from fedprofile.simulations.randomness import derived_seed
from fedprofile.simulations.scenarios import KNOWN, Scenario, changed, load_scenario, rounded
from fedprofile.simulations.shared_base import CacheSpec, SharedBase
from fedprofile.simulations.tenants import TenantExamples, read_tenants

OnRound = Callable[[int, int], None]
"""Told the rounds that are done and how many there are."""


@dataclass(frozen=True)
class CellOutcome:
    """What a cell came to.

    Args:
        result: What its JSON file holds.
        predictions: Of every evaluation record; see `fedprofile.simulations.predictions`.
    """

    result: dict[str, Any]
    predictions: pd.DataFrame = field(repr=False)


class CellRunner:
    """Runs cells of one experiment, one after another, over one base.

    Args:
        experiment: Whose cells.
        cache_folder: Where activations are mapped; in memory where there is none.
        results: What the folder of `[tracking]` is relative to; nothing is tracked where there is none.
    """

    def __init__(
        self, experiment: Experiment, cache_folder: Path | None = None, *, results: Path | None = None
    ) -> None:
        self._experiment, self.engine, self._results = experiment, experiment.engine, results
        self._scenario = read_scenario(experiment.data)
        self._users: list[TenantExamples] = []
        mib = self.engine.cache_mib
        limit = None if mib is None else mib << 20
        self._cache = CacheSpec(self.engine.cache, cache_folder, limit)
        self._bases: dict[str, SharedBase] = {}

    def base(self, card: FederationCard) -> SharedBase:
        """The card's base model, loaded when it is first needed."""
        key = card.base.model_dump_json()
        if key not in self._bases:
            self._bases[key] = SharedBase.load(
                card.base,
                self._cache,
                folder=self.engine.base,
                device=usable_device(self.engine.device),
                dtype=getattr(torch, self.engine.dtype),
            )
        return self._bases[key]

    def prepare(self, cell: Cell) -> PreparedCell:
        """Spread the users and encode them for the cell's card.

        Raises:
            ConfigError: The cell's settings do not fit the data.
        """
        if not self._users:
            found = read_tenants(self._scenario, split_seed=0)
            data = self._experiment.data
            self._users = found if data.limit is None else [fewer(tenant, data.limit, data.seed) for tenant in found]
        spread_out = [
            _for_cell(tenant, cell)
            for tenant in spread(self._users, cell.partition, seed=cell.seed, split_seed=cell.split_seed)
        ]
        card = cell_card(cell, self._scenario)
        card = changed(card, rounds={"min_tenants": min(card.rounds.min_tenants, len(spread_out))})
        tokenizer = self.base(card).tokenizer
        tenants = [replace(each.encoded(card, tokenizer), mitigation=cell.mitigation) for each in spread_out]
        everybody = None
        if cell.arm == "pooled":
            card = changed(card, rounds={"min_tenants": 1})
            everybody = replace(pooled(spread_out).encoded(card, tokenizer), mitigation=cell.mitigation)
        return PreparedCell(cell, card, tenants, spread_out, everybody)

    def fill(self, prepared: PreparedCell) -> None:
        """Store the activations of every record of a cell, where the experiment asks for it."""
        _, cache = self.base(prepared.card).model(prepared.card)
        if cache is not None and self.engine.cache == "full" and self.engine.kind == "in-process":
            for tenant in prepared.tenants:
                viewed = tenant.records.training.with_views(prepared.card.training.views)
                cache.fill([*viewed.tokens, *tenant.records.evaluation.tokens])

    def run(self, cell: Cell, on_round: OnRound) -> CellOutcome:
        """Run one cell.

        Args:
            cell: Of the experiment.
            on_round: Told as rounds are done.

        Returns:
            What its JSON file holds, and what the adapter predicts.
        """
        started = time.monotonic()
        prepared = self.prepare(cell)
        ready = time.monotonic()
        self.fill(prepared)
        filled = time.monotonic()
        journal = self._journal(prepared, on_round)
        try:
            result = self._trained(prepared, journal)
        finally:
            journal.close()
        over = time.monotonic()
        timing = {
            "prepare_s": ready - started,
            "fill_s": filled - ready,
            "federation_s": over - filled,
            "round_s": float(np.mean([record.seconds for record in result.records if record.kind == "train"] or [0.0])),
            "peak_mib": peak_mib(self.engine.device),
            "cache_mib": self.base(prepared.card).cached_bytes / 2**20,
        }
        scores = self._scores(prepared, result)
        found = {
            "cell": cell.name,
            "settings": {key: "inf" if value == float("inf") else value for key, value in cell.settings.items()},
            "noise": cell.noise,
            **self._outcome(prepared, result, scores),
            "timing": {name: round(value, 3) for name, value in timing.items()},
            "machine": machine(self.engine),
        }
        return CellOutcome(found, predictions(prepared, scores, self._people(), self._truth()))

    def _journal(self, prepared: PreparedCell, on_round: OnRound) -> TrackedJournal:
        cell, card = prepared.cell, prepared.card
        tenants = prepared.tenants if prepared.everybody is None else [prepared.everybody]
        promises = {
            tenant.name: PrivacyLoss(tenant.settings.run.epsilon, tenant.settings.run_delta)
            for tenant in (tenants if cell.noise else ())
        }
        tracker: Tracker = NoTracker()
        if self._results is not None:
            spec = self._experiment.tracking
            tracker = open_tracker(spec, self._results, title=self._experiment.name, run=cell.name)
        say = logging.getLogger(__name__).warning
        return TrackedJournal(_Rounds(card.training.rounds, on_round), tracker, card, lambda: promises, say)

    def _trained(self, prepared: PreparedCell, journal: Journal) -> ArmResult:
        cell = prepared.cell
        model, cache = self.base(prepared.card).model(prepared.card)
        if self.engine.kind == "ray":
            # Imported late: Ray is an extra.
            from fedprofile.simulations.ray_engine import run_on_ray

            with tempfile.TemporaryDirectory() as folder:
                found = run_on_ray(self._experiment, prepared, model.initial_arrays(), Path(folder), journal)
                return ArmResult.together(found, len(prepared.tenants))
        if cell.arm == "alone":
            return run_alone(
                prepared.card,
                model,
                cache,
                prepared.tenants,
                seed=cell.seed,
                noise=cell.noise,
                tokens_at_once=self.engine.tokens_at_once,
                journal=journal,
            )
        found = run_in_process(
            prepared.card,
            model,
            cache,
            prepared.tenants if prepared.everybody is None else [prepared.everybody],
            seed=cell.seed,
            noise=cell.noise,
            tokens_at_once=self.engine.tokens_at_once,
            block=self.engine.block,
            journal=journal,
        )
        return ArmResult.together(found, len(prepared.tenants))

    def _scores(self, prepared: PreparedCell, result: ArmResult) -> list[NDArray[np.float64]]:
        """Scores of each tenant's evaluation records."""
        model, cache = self.base(prepared.card).model(prepared.card)
        scores = []
        for tenant, arrays in zip(prepared.tenants, result.adapters, strict=True):
            model.set_arrays(arrays)
            scores.append(model.predict(tenant.records.evaluation, cache))
        return scores

    def _people(self) -> dict[str, int]:
        """The number that stands for each user, in every cell."""
        users = (example.user for tenant in self._users for example in tenant.examples)
        return {user: number for number, user in enumerate(dict.fromkeys(users))}

    def _truth(self) -> Mapping[str, float] | None:
        """Of the population with known truth: each user's probability by the Bayes rule."""
        data = self._experiment.data
        return bayes_probability(known_population(data.options, data.seed)) if data.dataset == KNOWN else None

    def _outcome(
        self, prepared: PreparedCell, result: ArmResult, scores: Sequence[NDArray[np.float64]]
    ) -> dict[str, Any]:
        """What was measured: exact metrics over evaluation users, which only a simulation has, and the noised ones."""
        evaluation = [tenant.records.evaluation for tenant in prepared.tenants]
        tenants = []
        for tenant, own in zip(prepared.tenants, scores, strict=True):
            spent = result.spent.get(tenant.name if prepared.everybody is None else prepared.everybody.name)
            tenants.append(
                {
                    "name": tenant.name,
                    "declared_users": tenant.settings.population.declared_users,
                    "training_users": len(tenant.records.training.users),
                    "evaluation_users": len(tenant.records.evaluation.users),
                    "spent": None if spent is None else spent.as_dict(),
                    "exact_metrics": exact_metrics(own, tenant.records.evaluation.labels, prepared.card.task),
                }
            )
        labels = np.concatenate([records.labels for records in evaluation])
        return {
            "rounds": result.rounds,
            "reason": result.reason,
            "adapter_sha256": _hash(result.adapters),
            "exact_metrics": exact_metrics(np.concatenate(scores), labels, prepared.card.task),
            "noised_metrics": {
                str(record.round): metrics_as_dict(record.outcome.metrics)
                for record in result.records
                if record.kind == "evaluate"
            },
            "refused": sum(len(record.outcome.refused) for record in result.records),
            "dropped": sum(len(record.outcome.dropped) for record in result.records),
            "thresholds": thresholds(prepared, result),
            "people": people(prepared, result),
            "picture": picture(prepared),
            "tenants": tenants,
        }


class _Rounds(NoJournal):
    """Tells of every training round that is done."""

    def __init__(self, rounds: int, on_round: OnRound) -> None:
        self._rounds, self._on_round = rounds, on_round

    def answered(self, record: RoundRecord, checkpoint: Checkpoint) -> None:
        """See `Journal`."""
        if record.kind == "train":
            self._on_round(record.round, self._rounds)


def read_scenario(data: DataSpec) -> Scenario:
    """The scenario of an experiment's data; see `load_scenario`."""
    return load_scenario(data.dataset, data.data_dir, data.seed, data.options)


def check_cell(cell: Cell, scenario: Scenario) -> None:
    """Refuse a cell before any is run.

    Raises:
        ConfigError: Its card or its tenant file is not one.
        PolicyRefusal, BudgetRefusal: No noise keeps its promise; see `plan_segment`.
    """
    tenant = _for_cell(TenantExamples("", scenario.template, [], lambda user: False), cell)
    card = cell_card(cell, scenario)
    cell.mitigation.training(card, tenant.settings)
    fits = cell.arm == "federated" and card.task.group is not None and card.task.kind == "binary"
    if cell.mitigation.kind == "thresholds" and not fits:
        raise ConfigError(
            "mitigation.kind='thresholds': needs arm='federated' and a binary card with a group attribute."
        )


def cell_card(cell: Cell, scenario: Scenario) -> FederationCard:
    """The card of a cell; the number of tenants that it waits for is not yet this cell's."""
    return cell.mitigation.on_card(changed(scenario.card, **cell.card))


def _hash(adapters: Sequence[Arrays]) -> str:
    """Of the adapter, or of all where each tenant has its own."""
    first = arrays_hash(adapters[0])
    if all(arrays is adapters[0] for arrays in adapters):
        return first
    return hashlib.sha256("".join(map(arrays_hash, adapters)).encode()).hexdigest()


def _for_cell(tenant: TenantExamples, cell: Cell) -> TenantExamples:
    """A tenant with the cell's settings, and split as these say."""
    found = tenant.with_settings(cell.tenant)
    return (found if cell.epsilon is None else found.at_budget(cell.epsilon)).split_by(cell.split_seed)


def fewer(tenant: TenantExamples, limit: int, seed: int) -> TenantExamples:
    """A tenant with at most so many of its users, with all of their records."""
    users = list(dict.fromkeys(example.user for example in tenant.examples))
    order = np.random.Generator(np.random.Philox(derived_seed(seed, "limit", tenant.name))).permutation(len(users))
    kept = {users[place] for place in order[:limit]}
    examples = [example for example in tenant.examples if example.user in kept]
    return replace(tenant, examples=examples).with_settings({"population": {"declared_users": rounded(len(kept))}})


def usable_device(name: str) -> str:
    """A device that is here.

    Raises:
        ConfigError: It is not.
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"engine.device='{name}' is not here ({str(error).splitlines()[0]}); use cpu.") from None
    return name


def peak_mib(device: str) -> float:
    """Peak memory of this process so far: of the device where it has its own, else resident, mapped cache included."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine(engine: EngineSpec) -> dict[str, Any]:
    """On what a cell ran."""
    names: Sequence[str] = ("torch", "transformers", "peft", "opacus", "flwr")
    versions: Mapping[str, str] = {name: version(name) for name in names}
    return {**versions, **engine.model_dump(mode="json"), "threads": torch.get_num_threads()}
