"""What a round costs beyond training: transport, aggregation, ledger and the reply grid's wait, for ten tenants.

    python benchmarks/round_overhead.py [--tenants 10] [--rounds 20]

A real federation on this machine (one process a tenant, TLS, keys) whose training is next to nothing: the head alone
over cached vectors, about two users a step. What a round takes is then its overhead; the ratio is to `reply_every`,
below which no round can be, because replies leave on that grid.
"""

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedprofile.common.card import FederationCard
from fedprofile.common.config import validate
from fedprofile.simulations.population import Shop, write_shop
from fedprofile.simulations.rehearsal import prepare, run
from fedprofile.simulations.scenarios import Scenario, ScenarioTenant, load_scenario

RESULT = Path(__file__).parent / "results" / "round_overhead.json"
VISITORS = 60
WARM_UP = 2
"""Rounds that are not counted."""


def scenario(tenants: int, rounds: int) -> Scenario:
    """Ten small shops of the built-in population, the head alone."""
    built_in = load_scenario(None, None, seed=0)
    data = built_in.card.model_dump(mode="json")
    data["adapter"]["method"] = "head"
    data["training"] |= {"rounds": rounds, "local_steps": 1}
    data["rounds"]["min_tenants"] = tenants
    data["evaluation"]["when"] = "end"
    privacy = built_in.template.privacy.model_copy(update={"sample_rate": 0.05})
    shops = [Shop(f"shop-{number:02d}", VISITORS, (0.25, 0.25, 0.25, 0.25)) for number in range(tenants)]
    return Scenario(
        validate(data, FederationCard, "benchmark"),
        built_in.template.model_copy(update={"privacy": privacy}),
        tuple(ScenarioTenant(shop.name, VISITORS, partial(write_shop, shop, seed=0)) for shop in shops),
    )


def main(
    tenants: Annotated[int, typer.Option(help="How many.")] = 10,
    rounds: Annotated[int, typer.Option(help="Of training.")] = 20,
) -> None:
    """Run the federation and show the rounds' seconds."""
    chosen = scenario(tenants, rounds)
    reply_every = chosen.template.policy.reply_every
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = prepare(Path(folder) / "run", chosen, epsilon=None, split_seed=0)
        run(rehearsal, lambda: None)
        trained = [line for line in rehearsal.history() if line["kind"] == "train"]
    assert all(len(line["tenants"]) == tenants for line in trained), "a tenant missed a round"
    seconds = [line["seconds"] for line in trained][WARM_UP:]
    found = {
        "tenants": tenants,
        "rounds": len(seconds),
        "reply_every": reply_every,
        "median_seconds": round(statistics.median(seconds), 3),
        "largest_seconds": round(max(seconds), 3),
        "median_over_reply_every": round(statistics.median(seconds) / reply_every, 2),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        f"a round of {tenants} tenants beyond training: median {found['median_seconds']} s, largest "
        f"{found['largest_seconds']} s, {found['median_over_reply_every']} times reply_every ({reply_every} s)."
    )


if __name__ == "__main__":
    typer.run(main)
