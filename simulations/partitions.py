"""Users spread over tenants by flwr-datasets: as the data has them, alike, or skewed by label or by quantity.

What is spread is users, not records: a user's records stay together, so that nobody is at two tenants and each
tenant's guarantee covers all that there is of a person.
"""

from collections.abc import Sequence
from functools import partial

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

from fedprofile.client.sampling import is_evaluation_user
from fedprofile.common.config import validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.experiment import PartitionSpec
from fedprofile.simulations.randomness import derived_seed, split_key
from fedprofile.simulations.scenarios import rounded
from fedprofile.simulations.tenants import TenantExamples


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
    if spec.kind == "natural" and spec.column is None:
        found = [tenant.split_by(split_seed) for tenant in tenants]
    else:
        found = _partitioned(tenants, spec, seed, split_seed)
    large = [tenant for tenant in found if len({example.user for example in tenant.examples}) >= spec.smallest]
    if not large:
        raise ConfigError(
            f"partition.smallest={spec.smallest}: none of {len(found)} tenants has as many users; lower it, or ask for "
            "fewer tenants."
        )
    return large


def _partitioned(
    tenants: Sequence[TenantExamples], spec: PartitionSpec, seed: int, split_seed: int
) -> list[TenantExamples]:
    by_user: dict[str, list[Example]] = {}
    for tenant in tenants:
        for example in tenant.examples:
            by_user.setdefault(example.user, []).append(example)
    order = np.random.Generator(np.random.Philox(derived_seed(seed, "partition"))).permutation(len(by_user))
    users = list(by_user)
    shuffled = [users[place] for place in order]
    firsts = [by_user[user][0] for user in shuffled]
    columns: dict[str, list[object]] = {"user": list(shuffled), "label": [example.label for example in firsts]}
    if spec.column is not None:
        if any(spec.column not in example.row for example in firsts):
            raise ConfigError(f"partition.column='{spec.column}' is no column of the labelled rows.")
        columns["column"] = [str(example.row[spec.column]) for example in firsts]
    partitioner = _partitioner(spec, seed)
    partitioner.dataset = Dataset.from_dict(columns)
    try:
        parts = [partitioner.load_partition(number)["user"] for number in range(partitioner.num_partitions)]
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"partition.kind='{spec.kind}' over {len(users)} users: {error}") from None
    return [
        _tenant(tenants[0].settings, number, [example for user in part for example in by_user[user]], split_seed)
        for number, part in enumerate(parts)
    ]


def _partitioner(spec: PartitionSpec, seed: int) -> Partitioner:
    if spec.kind == "natural":
        return NaturalIdPartitioner(partition_by="column")
    if spec.kind == "dirichlet":
        return DirichletPartitioner(
            num_partitions=spec.tenants, partition_by="label", alpha=spec.alpha, min_partition_size=1, seed=seed
        )
    kinds = {
        "iid": IidPartitioner,
        "linear": LinearPartitioner,
        "square": SquarePartitioner,
        "exponential": ExponentialPartitioner,
    }
    found: Partitioner = kinds[spec.kind](num_partitions=spec.tenants)
    return found


def _tenant(template: TenantFile, number: int, examples: list[Example], split_seed: int) -> TenantExamples:
    name = f"tenant-{number:03d}"
    data = template.model_dump(mode="json", exclude_none=True)
    users = len({example.user for example in examples})
    data["population"] = {"name": name, "declared_users": max(1, rounded(users))}
    settings = validate(data, TenantFile, "tenant.toml")
    share = settings.privacy.evaluation_users
    chosen = partial(is_evaluation_user, key=split_key(split_seed, name), share=share)
    return TenantExamples(name, settings, examples, chosen)
