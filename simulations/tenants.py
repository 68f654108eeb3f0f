"""A scenario's tenants in this process: data read by the deployed reader, and split as a deployed ledger splits it."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedprofile.client.sampling import is_evaluation_user, split_records
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.interactions import Example, encode
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.federation import SimulatedTenant
from fedprofile.simulations.randomness import split_key
from fedprofile.simulations.scenarios import Scenario, replaced


@dataclass(frozen=True)
class TenantExamples:
    """One tenant's data before it is encoded for a card.

    Args:
        name: Of the tenant.
        settings: Its tenant file.
        examples: All of its labelled rows.
        evaluation_user: Which users are only evaluated.
    """

    name: str
    settings: TenantFile
    examples: list[Example] = field(repr=False)
    evaluation_user: Callable[[str], bool] = field(repr=False)

    def encoded(self, card: FederationCard, tokenizer: PreTrainedTokenizerBase) -> SimulatedTenant:
        """The tenant's records as a card's model takes them."""
        records = encode(self.examples, card, tokenizer)
        return SimulatedTenant(self.name, self.settings, split_records(records, self.evaluation_user))

    def with_settings(self, sections: Mapping[str, Mapping[str, Any]]) -> "TenantExamples":
        """The same tenant with some settings of some sections of its file replaced."""
        return replace(self, settings=changed_file(self.settings, sections))

    def at_budget(self, epsilon: float) -> "TenantExamples":
        """The same tenant with another life and run epsilon."""
        return self.with_settings({"budget": {"epsilon": epsilon}, "run": {"epsilon": epsilon}})

    def split_by(self, seed: int) -> "TenantExamples":
        """The same tenant with other evaluation users."""
        share = self.settings.privacy.evaluation_users
        return replace(self, evaluation_user=partial(is_evaluation_user, key=split_key(seed, self.name), share=share))


def changed_file(file: TenantFile, sections: Mapping[str, Mapping[str, Any]]) -> TenantFile:
    """A tenant file with some settings of some sections replaced.

    Raises:
        ConfigError: A section is not one of a tenant file.
    """
    return validate(replaced(file.model_dump(mode="json", exclude_none=True), sections), TenantFile, "tenant file")


def read_tenants(scenario: Scenario, split_seed: int) -> list[TenantExamples]:
    """Read every tenant of a scenario.

    Args:
        scenario: Card, tenants and data.
        split_seed: Decides who is an evaluation user.

    Returns:
        The tenants in the scenario's order.

    Raises:
        DataError: A row does not fit the card.
    """
    found = []
    for tenant in scenario.tenants:
        settings = scenario.tenant_file(tenant)
        with tempfile.TemporaryDirectory() as folder:
            tenant.write(Path(folder))
            examples = read_examples(settings, scenario.card, Path(folder))
        found.append(TenantExamples(tenant.name, settings, examples, lambda user: False).split_by(split_seed))
    return found
