"""Users' group values beside the deployed reader's records, through every way of spreading users over tenants."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.common.errors import DataError, PolicyRefusal
from fedprofile.common.tenant import TenantFile
from fedprofile.simulations.experiment import PartitionSpec
from fedprofile.simulations.partitions import spread
from fedprofile.simulations.scenarios import Scenario, ScenarioTenant, load_scenario
from fedprofile.simulations.tenants import TenantExamples, people_at_several, read_tenants

COMMON = 40
"""People at both tenants."""


def _people(tenant: str) -> dict[str, tuple[str, str]]:
    """Person -> age band and region; the same at both tenants."""
    first = 0 if tenant == "acme" else 60
    return {f"p{number:03d}": (("young", "old")[number % 2], f"r{number % 3}") for number in range(first, first + 100)}


def _write(tenant: str, folder: Path, changed: str = "") -> None:
    lines = ["person,month,visits,device,age,region,bought"]
    for number, (person, (age, region)) in enumerate(_people(tenant).items()):
        for visit in range(2):
            odd = changed if person == "p070" and visit else age
            lines.append(f"{person},may,{visit},phone,{odd or age},{region},{('no', 'yes')[number % 2]}")
    (folder / "visits.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scenario(card_data: Callable[..., dict[str, Any]], changed: str = "") -> Scenario:
    card = validate(card_data(history={"record": "a visitor in {month}", "event": ""}), FederationCard, "card")
    template = {
        "source": {"kind": "csv", "path": "visits.csv"},
        "columns": {"user": "person", "label": "bought", "group": "region", "protected": ["age"]},
        "population": {"name": "people", "declared_users": 100},
        "budget": {"epsilon": 8.0, "delta": 1e-5},
        "run": {"epsilon": 8.0},
    }
    tenants = (
        ScenarioTenant("acme", 100, partial(_write, "acme")),
        ScenarioTenant("globex", 100, partial(_write, "globex", changed=changed)),
    )
    return Scenario(card, validate(template, TenantFile, "tenant.toml"), tenants)


@pytest.fixture
def tenants(card_data: Callable[..., dict[str, Any]]) -> list[TenantExamples]:
    """Two tenants of 100 people, 40 of whom are at both."""
    return read_tenants(_scenario(card_data), split_seed=0)


def _users(tenant: TenantExamples) -> set[str]:
    return {example.user for example in tenant.examples}


def test_every_user_has_every_group_value_and_no_record_has_one(tenants: list[TenantExamples]) -> None:
    for tenant in tenants:
        assert tenant.groups == {
            person: {"region": region, "age": age} for person, (age, region) in _people(tenant.name).items()
        }
        assert all(set(example.row) == {"month", "visits", "device"} for example in tenant.examples)


@pytest.mark.parametrize("spec", [{}, {"kind": "iid"}, {"kind": "dirichlet"}, {"column": "age"}, {"column": "device"}])
def test_groups_survive_spreading(spec: dict[str, Any], tenants: list[TenantExamples]) -> None:
    people = _people("acme") | _people("globex")
    found = spread(tenants, PartitionSpec(tenants=3, smallest=10, **spec), seed=0, split_seed=1)
    assert set().union(*map(_users, found)) == set(people)
    for tenant in found:
        assert set(tenant.groups) == _users(tenant)
        for person, values in tenant.groups.items():
            assert (values["age"], values["region"]) == people[person]


def test_a_group_column_can_be_the_tenant(tenants: list[TenantExamples]) -> None:
    found = spread(tenants, PartitionSpec(column="age"), seed=0, split_seed=0)
    assert [{values["age"] for values in tenant.groups.values()} for tenant in found] in (
        [{"young"}, {"old"}],
        [{"old"}, {"young"}],
    )


def test_people_at_both_tenants_are_found_and_are_on_the_same_side_of_the_split(
    tenants: list[TenantExamples],
) -> None:
    several = people_at_several(tenants)
    assert several == {f"p{number:03d}": ("acme", "globex") for number in range(60, 60 + COMMON)}
    for seed in range(5):
        acme, globex = (tenant.split_by(seed) for tenant in spread(tenants, PartitionSpec(), seed=0, split_seed=seed))
        sides = [(acme.evaluation_user(person), globex.evaluation_user(person)) for person in several]
        assert all(one == other for one, other in sides)
        assert 0 < sum(one for one, _ in sides) < COMMON
    apart = [replace(tenant, split_name=None).split_by(0) for tenant in tenants]
    assert any(apart[0].evaluation_user(person) != apart[1].evaluation_user(person) for person in several)


def test_tenants_without_people_in_common_keep_their_own_splits() -> None:
    built_in = read_tenants(load_scenario(None, None, 0), split_seed=0)
    assert people_at_several(built_in) == {}
    assert {tenant.split_name for tenant in built_in} == {None}
    assert {values["region"] for values in built_in[0].groups.values()} == {"north", "south"}


def test_a_user_with_two_values_of_a_group_is_refused_without_them(card_data: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=r"line 23: the group columns region, age differ") as caught:
        read_tenants(_scenario(card_data, changed="elderly"), split_seed=0)
    assert "elderly" not in str(caught.value) and "p070" not in str(caught.value)


def test_the_deployed_reader_refuses_a_card_that_names_a_group_column(
    card_data: Callable[..., dict[str, Any]],
) -> None:
    scenario = _scenario(card_data)
    history = scenario.card.history.model_copy(update={"record": "{age} visitor in {month}"})
    with pytest.raises(PolicyRefusal, match="'age'"):
        read_tenants(replace(scenario, card=scenario.card.model_copy(update={"history": history})), split_seed=0)
