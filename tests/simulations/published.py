"""The published data sets beside the repository, each read once."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedprofile.simulations.datasets import TenantRows, load_dataset

DATA = Path(__file__).parents[3] / "shared" / "data"

HERE = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the repository"),
]


def with_data(test: Any) -> Any:
    """Marks a test that reads the real data sets."""
    for mark in HERE:
        test = mark(test)
    return test


@cache
def published_tenants(name: str, tenant: str | None = None) -> list[TenantRows]:
    """A published data set's tenants."""
    return list(load_dataset(name, DATA, {"tenant": tenant} if tenant else {}))


@cache
def published_table(name: str, tenant: str | None = None) -> pd.DataFrame:
    """All labelled rows, with a column that names the tenant."""
    return pd.concat(
        [
            pd.DataFrame(one.rows, columns=list(one.columns)).assign(at=one.name)
            for one in published_tenants(name, tenant)
        ],
        ignore_index=True,
    )
