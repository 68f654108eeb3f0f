"""A scenario's tenants in this process: data read by the deployed reader, and split as a deployed ledger splits it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fedprofile.client.sampling import is_evaluation_user, split_records
from fedprofile.client.sources import read_examples
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.interactions import Example, encode
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.federation import SimulatedTenant
from fedprofile.simulations.randomness import split_key
from fedprofile.simulations.scenarios import Scenario


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

    def at_budget(self, epsilon: float) -> "TenantExamples":
        """The same tenant with another life and run epsilon."""
        data = self.settings.model_dump(mode="json", exclude_none=True)
        data["budget"]["epsilon"] = data["run"]["epsilon"] = epsilon
        return replace(self, settings=validate(data, TenantFile, "tenant.toml"))

    def split_by(self, seed: int) -> "TenantExamples":
        """The same tenant with other evaluation users."""
        share = self.settings.privacy.evaluation_users
        return replace(self, evaluation_user=partial(is_evaluation_user, key=split_key(seed, self.name), share=share))


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
