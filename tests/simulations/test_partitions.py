"""Users over tenants: nobody at two tenants, nobody lost, and skewed as asked for."""

from collections import Counter

import numpy as np
import pytest

from fedprofile.common.errors import ConfigError
from fedprofile.common.interactions import Example
from fedprofile.simulations.experiment import PartitionSpec
from fedprofile.simulations.partitions import spread
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.tenants import TenantExamples


@pytest.fixture(scope="module")
def shops() -> list[TenantExamples]:
    """Two shops of 300 users, some with several records; labels of each user are equal."""
    template = load_scenario(None, None, 0)
    settings = template.tenant_file(template.tenants[0])
    draw = np.random.default_rng(0)
    shops = []
    for name in ("acme", "globex"):
        examples = [
            Example(f"{name}-{user}", {"device": str(draw.choice(["phone", "desktop"]))}, label=int(user % 2))
            for user in range(300)
            for _ in range(int(draw.integers(1, 4)))
        ]
        shops.append(TenantExamples(name, settings, examples, lambda user: False))
    return shops


def _users(tenant: TenantExamples) -> set[str]:
    return {example.user for example in tenant.examples}


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "linear", "square", "exponential"])
def test_every_user_is_at_one_tenant_with_all_records(kind: str, shops: list[TenantExamples]) -> None:
    spec = PartitionSpec(kind=kind, tenants=4, smallest=10)  # type: ignore[arg-type]
    found = spread(shops, spec, seed=3, split_seed=0)
    owners = Counter(user for tenant in found for user in _users(tenant))
    assert set(owners.values()) == {1}
    assert set(owners) == _users(shops[0]) | _users(shops[1])
    assert sum(len(tenant.examples) for tenant in found) == sum(len(shop.examples) for shop in shops)
    for tenant in found:
        assert tenant.settings.population.declared_users == pytest.approx(len(_users(tenant)), rel=0.06, abs=1)
    again = spread(shops, spec, seed=3, split_seed=0)
    other = spread(shops, spec, seed=4, split_seed=0)
    assert [_users(tenant) for tenant in again] == [_users(tenant) for tenant in found]
    assert [_users(tenant) for tenant in other] != [_users(tenant) for tenant in found]


def _label_shares(found: list[TenantExamples]) -> list[float]:
    return [float(np.mean([example.label for example in tenant.examples])) for tenant in found]


def test_dirichlet_skews_labels_and_iid_does_not(shops: list[TenantExamples]) -> None:
    skewed = spread(shops, PartitionSpec(kind="dirichlet", tenants=5, alpha=0.1, smallest=10), seed=0, split_seed=0)
    even = spread(shops, PartitionSpec(kind="iid", tenants=5), seed=0, split_seed=0)
    assert np.std(_label_shares(skewed)) > 0.25
    assert np.std(_label_shares(even)) < 0.1


def test_quantity_skew_grows_with_its_kind(shops: list[TenantExamples]) -> None:
    largest = [
        max(
            len(_users(tenant))
            for tenant in spread(shops, PartitionSpec(kind=kind, tenants=4, smallest=10), seed=0, split_seed=0)
        )
        for kind in ("iid", "linear", "square")
    ]
    assert largest == sorted(largest) and len(set(largest)) == 3


def test_natural_is_as_the_data_has_it_or_by_a_column(shops: list[TenantExamples]) -> None:
    assert [tenant.name for tenant in spread(shops, PartitionSpec(), seed=0, split_seed=0)] == ["acme", "globex"]
    found = spread(shops, PartitionSpec(column="device"), seed=0, split_seed=0)
    assert len(found) == 2
    for tenant in found:
        by_user: dict[str, str] = {}
        for example in tenant.examples:
            by_user.setdefault(example.user, str(example.row["device"]))
        assert len(set(by_user.values())) == 1
    with pytest.raises(ConfigError, match="'shelf' is no column"):
        spread(shops, PartitionSpec(column="shelf"), seed=0, split_seed=0)


def test_tenants_that_are_too_small_do_not_take_part(shops: list[TenantExamples]) -> None:
    spec = PartitionSpec(kind="exponential", tenants=6, smallest=50)
    found = spread(shops, spec, seed=0, split_seed=0)
    assert 1 <= len(found) < 6
    assert min(len(_users(tenant)) for tenant in found) >= 50
    with pytest.raises(ConfigError, match="no tenant has as many of the 600 users"):
        spread(shops, PartitionSpec(kind="iid", tenants=4, smallest=1000), seed=0, split_seed=0)


def test_evaluation_users_follow_the_split_seed(shops: list[TenantExamples]) -> None:
    one, same, other = (
        spread(shops, PartitionSpec(kind="iid", tenants=2), seed=0, split_seed=split)[0] for split in (1, 1, 2)
    )
    chosen = [{user for user in _users(tenant) if tenant.evaluation_user(user)} for tenant in (one, same, other)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert 0.1 < len(chosen[0]) / len(_users(one)) < 0.3
