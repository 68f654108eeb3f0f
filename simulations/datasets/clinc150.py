"""CLINC150 (Larson et al. 2019): which of 150 intents does a request to an assistant have?

A user is one request: the data set has no person, and no group of persons. One tenant per domain, each with 15 of the
intents, so that labels are as skewed as they can be. The publisher's own parts (train, val, test) are put together,
since here it is users who are split.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedprofile.common.config import Frozen, validate
from fedprofile.common.errors import DataError
from fedprofile.simulations.datasets.tenant_rows import Adapter, TenantRows, as_tenants, find_file, tenant_name

REQUESTS = Path("clinc150") / "data_full.json"
DOMAINS = Path("clinc150") / "domains.json"
SOURCE = "CLINC150 (data_full.json and domains.json of clinc/oos-eval)"
PARTS = ("train", "val", "test")
LEFT_OUT = dict.fromkeys(("oos_train", "oos_val", "oos_test"), "out of scope: of no domain, and so of no tenant")


class Options(Frozen):
    """There are none."""


def read(data_dir: Path, options: Mapping[str, Any]) -> list[TenantRows]:
    """The requests in scope. A request that is there twice with the same intent is removed first.

    Args:
        data_dir: The folder that holds `clinc150/` or the two files themselves.
        options: None.

    Returns:
        Tenants, largest first.

    Raises:
        DataError: A file is not there or not the published one.
    """
    validate(dict(options), Options, "data.options")
    paths = [find_file(data_dir, file, SOURCE) for file in (REQUESTS, DOMAINS)]
    try:
        requests, domains = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
        pairs = list(dict.fromkeys((text, intent) for part in PARTS for text, intent in requests[part]))
        tenants = [domain_of[intent] for _, intent in pairs]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{paths[0].parent}: is not {SOURCE}; download it again.") from None
    visits = pd.DataFrame(pairs, columns=["text", "intent"]).assign(tenant=tenants)
    visits.insert(0, "request", [f"request-{number:05d}" for number in range(len(visits))])
    return as_tenants(visits, "tenant", {domain: tenant_name(domain) for domain in domains})


ADAPTER = Adapter("customer-service", "a request", (), LEFT_OUT, read)
