"""A scenario's tenants in this process: data read by the deployed reader, and split as a deployed ledger splits it.

Beside what a deployed client reads there are the users' group values, for analyses that only a simulation may make.
Group columns are those that the tenant file keeps out of texts and features: `columns.group` and `columns.protected`.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedprofile.client.cells import read_text, read_user
from fedprofile.client.sampling import is_evaluation_user, split_records
from fedprofile.client.sources import read_examples
from fedprofile.client.tables import read_rows
from fedprofile.common.candidates import encode_records
from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import DataError
from fedprofile.common.interactions import Example
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
        groups: User -> group column -> value, of every user of `examples`; NOT what a deployed client reads.
        split_name: Whose split it follows, where that is not its own: tenants with people in common share one, so
            that nobody is trained on at one tenant and evaluated at another.
    """

    name: str
    settings: TenantFile
    examples: list[Example] = field(repr=False)
    evaluation_user: Callable[[str], bool] = field(repr=False)
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    split_name: str | None = None

    def encoded(self, card: FederationCard, tokenizer: PreTrainedTokenizerBase) -> SimulatedTenant:
        """The tenant's records as a card's model takes them."""
        records = encode_records(self.examples, card, tokenizer)
        return SimulatedTenant(self.name, self.settings, split_records(records, self.evaluation_user))

    def with_settings(self, sections: Mapping[str, Mapping[str, Any]]) -> "TenantExamples":
        """The same tenant with some settings of some sections of its file replaced."""
        return replace(self, settings=changed_file(self.settings, sections))

    def at_budget(self, epsilon: float) -> "TenantExamples":
        """The same tenant with another life and run epsilon."""
        return self.with_settings({"budget": {"epsilon": epsilon}, "run": {"epsilon": epsilon}})

    def split_by(self, seed: int) -> "TenantExamples":
        """The same tenant with other evaluation users."""
        share, key = self.settings.privacy.evaluation_users, split_key(seed, self.split_name or self.name)
        return replace(self, evaluation_user=partial(is_evaluation_user, key=key, share=share))


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
            groups = read_groups(settings, Path(folder))
        found.append(TenantExamples(tenant.name, settings, examples, lambda user: False, groups))
    if people_at_several(found):
        found = [replace(tenant, split_name="all tenants") for tenant in found]
    return [tenant.split_by(split_seed) for tenant in found]


def people_at_several(tenants: Sequence[TenantExamples]) -> dict[str, tuple[str, ...]]:
    """Who is at more than one tenant, by id.

    Args:
        tenants: With the same id for the same person.

    Returns:
        User -> names of the tenants.
    """
    at: dict[str, list[str]] = {}
    for tenant in tenants:
        for user in {example.user for example in tenant.examples}:
            at.setdefault(user, []).append(tenant.name)
    return {user: tuple(names) for user, names in at.items() if len(names) > 1}


def read_groups(settings: TenantFile, folder: Path) -> dict[str, dict[str, str]]:
    """The users' group values.

    Args:
        settings: Which columns hold them, and where the labelled rows are.
        folder: What relative paths count from.

    Returns:
        User -> group column -> value, "" where there is none.

    Raises:
        DataError: The source cannot be read or lacks a column, or a user's rows differ in a value.
        CellError: A cell is no user or no text; `read_examples` says which.
    """
    columns = settings.columns
    names = dict.fromkeys([*([columns.group] if columns.group else []), *columns.protected])
    groups: dict[str, dict[str, str]] = {}

    def check(there: Sequence[str]) -> None:
        if missing := [name for name in names if name not in there]:
            raise DataError(f"source: group column '{missing[0]}' is missing; mend [columns] in tenant.toml.")

    for row in read_rows(settings.source, folder, check):
        values = {name: read_text(row.cells.get(name)) or "" for name in names}
        if groups.setdefault(read_user(row.cells.get(columns.user)), values) != values:
            raise DataError(
                f"source, line {row.line}: the group columns {', '.join(names)} differ from an earlier row's of the "
                "same user; give each user one value of each."
            )
    return groups
