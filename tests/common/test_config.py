"""TOML to typed objects: unknown keys with the nearest name, one sentence per problem, nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.card import FederationCard
from fedprofile.common.config import load_toml, parse_toml, validate
from fedprofile.common.errors import ConfigError
from fedprofile.common.tenant import TenantFile

TENANT = """
[source]
kind = "csv"
path = "visits.csv"
[columns]
user = "visitor"
label = "bought"
[population]
name = "shop"
declared_users = 1000
[budget]
epsilon = 8.0
[run]
epsilon = 4.0
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("declared_users", "declared_user"), "did you mean 'declared_users'?"),
        (('path = "visits.csv"', 'pth = "visits.csv"'), "did you mean 'path'?"),
        (("[budget]", "[budgets]"), "did you mean 'budget'?"),
        (("epsilon = 4.0", "epsilon = 9.0"), "above budget.epsilon=8"),
        (("epsilon = 8.0", "epsilon = 8.0\ndelta = 0.01"), "1/(10 * declared_users)"),
        (("declared_users = 1000", 'declared_users = "many"'), "'population.declared_users'"),
        (("epsilon = 4.0", 'epsilon = "4"'), "'run.epsilon': Input should be a valid number (found '4')"),
        (("declared_users = 1000", 'declared_users = "1000"'), "'population.declared_users'"),
        (("declared_users = 1000", "declared_users = true"), "'population.declared_users'"),
        (('kind = "csv"', 'kind = "xml"'), "'source'"),
        (("epsilon = 8.0", "epsilon = inf"), "'budget.epsilon'"),
        (("[run]", "[run"), "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(change: tuple[str, str], expected: str) -> None:
    assert parse_toml(TENANT, TenantFile, "tenant.toml").population.declared_users == 1000
    assert change[0] in TENANT
    with pytest.raises(ConfigError) as caught:
        parse_toml(TENANT.replace(*change), TenantFile, "tenant.toml")
    assert str(caught.value).startswith("tenant.toml: ")
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_whole_number_is_a_number() -> None:
    assert parse_toml(TENANT.replace("8.0", "8"), TenantFile, "tenant.toml").budget.epsilon == 8.0


def test_defaults_follow_the_page() -> None:
    tenant = parse_toml(TENANT, TenantFile, "tenant.toml")
    assert tenant.life_delta == 1e-6
    assert tenant.run_delta == tenant.life_delta / 4
    assert (tenant.privacy.evaluation_users, tenant.policy.reply_every) == (0.2, 30.0)
    large = parse_toml(TENANT.replace("1000", "1000000"), TenantFile, "tenant.toml")
    assert large.life_delta == 1e-7


def test_a_database_password_is_never_shown() -> None:
    sql = TENANT.replace('kind = "csv"\npath = "visits.csv"', 'kind = "sql"\nurl = "postgresql://u:hunter2@db/x"')
    with pytest.raises(ConfigError) as caught:
        parse_toml(sql, TenantFile, "tenant.toml")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(parse_toml(sql.replace("@db/x", '@db/x"\nquery = "q'), TenantFile, "t"))


def test_a_missing_or_binary_file_is_a_plain_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "absent.toml", TenantFile)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_toml(tmp_path / "binary.toml", TenantFile)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_an_object_or_a_config_error(text: str) -> None:
    for model in (TenantFile, FederationCard):
        with pytest.raises(ConfigError):
            parse_toml(text, model, "x")


def test_an_unknown_key_of_a_task_lists_its_own_kinds_names(card_data: Callable[..., dict[str, Any]]) -> None:
    names = "false_positive_rate, group, kind, labels"
    with pytest.raises(ConfigError, match=rf"'task\.binary\.qqq'; known names: {names}\."):
        validate(card_data(task={"qqq": 1}), FederationCard, "federation.toml")
    with pytest.raises(ConfigError, match=r"'task\.kind' is missing; add it"):
        validate({**card_data(), "task": {"labels": ["no", "yes"]}}, FederationCard, "federation.toml")
