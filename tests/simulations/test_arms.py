"""Everybody at one place: one tenant's users, under a promise that so many users may have."""

import pytest

from fedprofile.simulations.arms import POOLED, pooled
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.tenants import read_tenants


def test_a_delta_that_is_too_large_for_everybody_is_lowered() -> None:
    tenants = [
        tenant.with_settings({"budget": {"epsilon": 8.0, "delta": 1e-4}, "run": {"epsilon": 8.0, "delta": 1e-4}})
        for tenant in read_tenants(load_scenario(None, None, 0), split_seed=0)
        if tenant.settings.population.declared_users <= 1000
    ]
    together = pooled(tenants)
    declared = together.settings.population.declared_users
    assert together.name == together.settings.population.name == POOLED and declared > 1000
    assert together.settings.life_delta == together.settings.run_delta == pytest.approx(1 / (10 * declared))
    assert {tenant.settings.run_delta for tenant in tenants} == {1e-4}
    assert together.settings.run.epsilon == 8.0
    assert len({example.user for example in together.examples}) == sum(
        len({example.user for example in tenant.examples}) for tenant in tenants
    )
