"""A scenario: a federation card, a tenant file to start from, and every tenant's data laid out as at a tenant.

The cards stand in `configs/scenarios/`. What reads the data is the same code that reads a deployed tenant's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedprofile.common.card import FederationCard, load_card
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.tasks import RankingTask
from fedprofile.common.tenant import TenantFile, load_tenant_file
from fedprofile.simulations.clinics import CLINICS, write_clinic
from fedprofile.simulations.datasets import DATASETS, load_dataset
from fedprofile.simulations.known_population import known_population
from fedprofile.simulations.population import SHOPS, write_shop

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "scenarios"

BUILT_IN = "built-in"
KNOWN = "known"
"""The generated population with known truth."""
CLINIC_VISITS = "clinic-visits"
"""Generated patients."""

GENERATED = {BUILT_IN: "built-in", KNOWN: "known-population", CLINIC_VISITS: "health-risk"}
CARDS = {**GENERATED, **{name: adapter.scenario for name, adapter in DATASETS.items()}}
"""Data set -> the scenario whose card it is learnt with."""

DEMO_DELTA = 1e-5


@dataclass(frozen=True)
class ScenarioTenant:
    """One tenant before it has joined.

    Args:
        name: Of the tenant.
        declared_users: What its owner would type.
        write: Writes its data into a folder.
    """

    name: str
    declared_users: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Scenario:
    """A federation to rehearse.

    Args:
        card: Its card.
        template: The tenant file that every tenant starts from.
        tenants: Who takes part.
    """

    card: FederationCard
    template: TenantFile
    tenants: tuple[ScenarioTenant, ...]

    def tenant_file(
        self, tenant: ScenarioTenant, epsilon: float | None = None, ledger: Path | None = None
    ) -> TenantFile:
        """The tenant file of one tenant.

        Args:
            tenant: Of this scenario.
            epsilon: Life and run budget instead of the template's; at the template's delta, or at 1e-5.
            ledger: Where the population's ledger is.

        Returns:
            The validated file.

        Raises:
            ConfigError: The budget is not one.
        """
        data = self.template.model_dump(mode="json", exclude_none=True)
        data["population"] = {"name": tenant.name, "declared_users": tenant.declared_users}
        if ledger is not None:
            data["population"]["ledger"] = str(ledger)
        if epsilon is not None:
            delta = self.template.budget.delta or DEMO_DELTA
            data["budget"] = data["run"] = {"epsilon": epsilon, "delta": delta}
        return validate(data, TenantFile, "tenant.toml")


def is_generated(dataset: str) -> bool:
    """Whether a data set of an experiment is about nobody.

    Args:
        dataset: Its name.

    Returns:
        True for the generated populations.
    """
    return dataset in GENERATED


def load_scenario(
    dataset: str | None, data_dir: Path | None, seed: int, options: Mapping[str, Any] | None = None
) -> Scenario:
    """A scenario on a generated population or on a real data set.

    Args:
        dataset: Of `CARDS`; None is the built-in population.
        data_dir: The folder that holds the data set.
        seed: Of a generated population.
        options: Of the data set: see its module, or `fedprofile.simulations.known_spec`.

    Returns:
        The scenario.

    Raises:
        ConfigError: The data set or an option is not known, or `data_dir` is missing.
        DataError: The folder does not hold the data set.
    """
    name = dataset or BUILT_IN
    if name in GENERATED:
        return _with_configs(CARDS[name], _generated(name, seed, options or {}))
    if data_dir is None:
        raise ConfigError(f"data set '{name}' needs --data-dir, the folder that holds it as its owner published it.")
    tenants = tuple(
        ScenarioTenant(tenant.name, rounded(tenant.users), tenant.write)
        for tenant in load_dataset(name, data_dir, options)
    )
    adapter = DATASETS[name]
    scenario = _with_configs(adapter.scenario_of(options or {}), tenants)
    if isinstance(scenario.card.task, RankingTask) and adapter.catalogue is not None:
        card = changed(scenario.card, task={"candidates": adapter.catalogue(data_dir)})
        scenario = replace(scenario, card=card)
    return scenario


def _generated(name: str, seed: int, options: Mapping[str, Any]) -> tuple[ScenarioTenant, ...]:
    if name == KNOWN:
        population = known_population(options, seed)
        return tuple(
            ScenarioTenant(tenant, rounded(users), partial(population.write_tenant, tenant))
            for tenant, users in population.tenants.items()
        )
    if options:
        raise ConfigError(f"data.options: '{name}' has none; for a population to set, use '{KNOWN}'.")
    if name == CLINIC_VISITS:
        return tuple(
            ScenarioTenant(clinic.name, rounded(clinic.patients), partial(write_clinic, clinic, seed=seed))
            for clinic in CLINICS
        )
    return tuple(
        ScenarioTenant(shop.name, rounded(shop.visitors), partial(write_shop, shop, seed=seed)) for shop in SHOPS
    )


def replaced(data: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Plain data of a card or a tenant file, with some settings of some sections replaced."""
    return {**data, **{name: {**(data.get(name) or {}), **section} for name, section in sections.items()}}


def changed(card: FederationCard, **sections: dict[str, Any]) -> FederationCard:
    """A card with some settings of some sections replaced."""
    return validate(replaced(card.model_dump(mode="json"), sections), FederationCard, "federation card")


def rounded(count: int) -> int:
    """What a person would type for a number of users: two leading digits.

    >>> rounded(3911), rounded(247), rounded(42)
    (3900, 250, 42)
    """
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return round(count / unit) * unit


def _with_configs(name: str, tenants: tuple[ScenarioTenant, ...]) -> Scenario:
    folder = CONFIGS / name
    if not folder.is_dir():
        raise ConfigError(f"{folder} is missing; run simulate.py from a checkout of the repository.")
    return Scenario(load_card(folder / "federation.toml"), load_tenant_file(folder / "tenant.toml"), tenants)
