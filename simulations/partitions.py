"""Users spread over tenants by flwr-datasets: as the data has them, alike, or skewed by label or by quantity.

What is spread is users, not records: a user's records stay together, so that nobody is at two tenants and each
tenant's guarantee covers all that there is of a person.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    ExponentialPartitioner,
    IidPartitioner,
    LinearPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    SquarePartitioner,
)

from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.experiment import PartitionSpec
from fedprofile.simulations.randomness import derived_seed
from fedprofile.simulations.scenarios import rounded
from fedprofile.simulations.tenants import TenantExamples, changed_file


def spread(
    tenants: Sequence[TenantExamples], spec: PartitionSpec, *, seed: int, split_seed: int
) -> list[TenantExamples]:
    """Spread all users anew.

    Args:
        tenants: As the data has them.
        spec: How.
        seed: Of the spreading.
        split_seed: Decides who is an evaluation user.

    Returns:
        The tenants that have at least `spec.smallest` users.

    Raises:
        ConfigError: There are too few users for this, no such column, or no tenant is left.
    """
    by_user: dict[str, list[Example]] = {}
    groups: dict[str, Mapping[str, str]] = {}
    for tenant in tenants:
        groups.update(tenant.groups)
        for example in tenant.examples:
            by_user.setdefault(example.user, []).append(example)
    if spec.kind == "natural" and spec.column is None:
        large = [tenant.split_by(split_seed) for tenant in tenants if _users(tenant) >= spec.smallest]
    else:
        large = [
            _tenant(tenants[0].settings, number, {user: by_user[user] for user in part}, groups, split_seed)
            for number, part in enumerate(_partitioned(by_user, groups, spec, seed))
            if len(part) >= spec.smallest
        ]
    if not large:
        raise ConfigError(
            f"partition.smallest={spec.smallest}: no tenant has as many of the {len(by_user)} users; lower it, or ask "
            "for fewer tenants."
        )
    return large


def _users(tenant: TenantExamples) -> int:
    return len({example.user for example in tenant.examples})


def _partitioned(
    by_user: Mapping[str, list[Example]], groups: Mapping[str, Mapping[str, str]], spec: PartitionSpec, seed: int
) -> list[list[str]]:
    """The users of each part."""
    order = np.random.Generator(np.random.Philox(derived_seed(seed, "partition"))).permutation(len(by_user))
    users = list(by_user)
    shuffled = [users[place] for place in order]
    firsts = [by_user[user][0] for user in shuffled]
    columns: dict[str, list[object]] = {"user": list(shuffled), "label": [example.label for example in firsts]}
    if spec.column is not None:
        values = [{**groups.get(example.user, {}), **example.row} for example in firsts]
        if any(spec.column not in known for known in values):
            raise ConfigError(
                f"partition.column='{spec.column}' is no column of the labelled rows that the card names, and no "
                "group column."
            )
        columns["column"] = [str(known[spec.column]) for known in values]
    partitioner = _partitioner(spec, seed)
    partitioner.dataset = Dataset.from_dict(columns)
    try:
        return [list(partitioner.load_partition(number)["user"]) for number in range(partitioner.num_partitions)]
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"partition.kind='{spec.kind}' over {len(users)} users: {error}") from None


def _partitioner(spec: PartitionSpec, seed: int) -> Partitioner:
    if spec.kind == "natural":
        return NaturalIdPartitioner(partition_by="column")
    if spec.kind == "dirichlet":
        return DirichletPartitioner(
            num_partitions=spec.tenants, partition_by="label", alpha=spec.alpha, min_partition_size=10, seed=seed
        )
    kinds = {
        "iid": IidPartitioner,
        "linear": LinearPartitioner,
        "square": SquarePartitioner,
        "exponential": ExponentialPartitioner,
    }
    found: Partitioner = kinds[spec.kind](num_partitions=spec.tenants)
    return found


def _tenant(
    template: TenantFile,
    number: int,
    users: Mapping[str, list[Example]],
    groups: Mapping[str, Mapping[str, str]],
    split_seed: int,
) -> TenantExamples:
    name = f"tenant-{number:03d}"
    settings = changed_file(template, {"population": {"name": name, "declared_users": rounded(len(users))}})
    examples = [example for own in users.values() for example in own]
    mine = {user: groups[user] for user in users if user in groups}
    return TenantExamples(name, settings, examples, lambda user: False, mine).split_by(split_seed)
