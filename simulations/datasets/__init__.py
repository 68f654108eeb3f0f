"""Real data sets, read from a folder as their owner published them and laid out as tenants.

Each adapter says which column is the tenant, who the user is, what must be left out and why, and writes one folder
of files for each tenant, so that what reads them is the same code that reads a deployed tenant's data.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedprofile.common.errors import ConfigError
from fedprofile.simulations.datasets import (
    clinc150,
    credit_default,
    movielens,
    online_shoppers,
    oulad,
    vehicle_coupon,
)
from fedprofile.simulations.datasets.tenant_rows import Adapter, TenantRows

__all__ = ["DATASETS", "Adapter", "TenantRows", "load_dataset"]

DATASETS: dict[str, Adapter] = {
    "clinc150": clinc150.ADAPTER,
    "credit-default": credit_default.ADAPTER,
    "movielens-100k": movielens.ADAPTER_100K,
    "movielens-1m": movielens.ADAPTER_1M,
    "online-shoppers": online_shoppers.ADAPTER,
    "oulad": oulad.ADAPTER,
    "vehicle-coupon": vehicle_coupon.ADAPTER,
}


def load_dataset(name: str, data_dir: Path, options: Mapping[str, Any] | None = None) -> Iterator[TenantRows]:
    """A data set by name.

    Args:
        name: One of `DATASETS`.
        data_dir: The folder as its owner published it.
        options: Of the data set, such as `{"tenant": "occupation"}`; see its module.

    Returns:
        Its tenants.

    Raises:
        ConfigError: There is no such data set here, or no such option.
        DataError: The folder does not hold it.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset '{name}' is not known; choose from: {', '.join(DATASETS)}.")
    return iter(DATASETS[name].read(data_dir, options or {}))
