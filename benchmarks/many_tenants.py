"""What a thousand tenants cost beyond training: seconds of a round, and memory of each.

    python benchmarks/many_tenants.py [--tenants 1000]

A round of the in-process engine with everything but the training itself: server app, strategy, messages, policies,
ledgers and replies, with LoRA on the top 2 layers (both factors). Then the same with real training on small samples, in
processes of their own with K tenants and with one: memory of a tenant is the difference of their peaks over K - 1, its
20 records included and the base model not.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import fedprofile.common.environment  # noqa: F401  (before flwr and torch)

RESULT = Path(__file__).parent / "results" / "many_tenants.json"
RECORDS = 20


def main(
    tenants: Annotated[int, typer.Option(help="K.")] = 1000,
    training: Annotated[bool, typer.Option("--training", hidden=True)] = False,
    json_output: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Measure, print, and keep the result."""
    if json_output:
        print(json.dumps(_federation(tenants, training)))
        return
    idle = _in_a_process(tenants, False)
    many, one = _in_a_process(tenants, True), _in_a_process(1, True)
    result = {
        "tenants": tenants,
        "round_s_without_training": idle["round_s"],
        "mib_a_tenant": round((many["peak_mib"] - one["peak_mib"]) / max(tenants - 1, 1), 3),
        "peak_mib": many["peak_mib"],
        "peak_mib_of_one": one["peak_mib"],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(" ".join(f"{name}={value}" for name, value in result.items()))


def _in_a_process(tenants: int, training: bool) -> dict[str, float]:
    options = [f"--tenants={tenants}", "--json", *(["--training"] if training else [])]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _federation(count: int, training: bool) -> dict[str, float]:
    import numpy as np

    from fedprofile.client.sampling import TenantRecords
    from fedprofile.common.interactions import EncodedRecords
    from fedprofile.simulations import federation
    from fedprofile.simulations.cohort import CohortTrainer
    from fedprofile.simulations.scenarios import changed, load_scenario
    from fedprofile.simulations.shared_base import SharedBase

    class Idle(CohortTrainer):
        """Trains nothing."""

        def self_test(self, settings: Any) -> None:
            pass

        def train(self, jobs: Any) -> Any:
            return [{name: np.zeros_like(value) for name, value in job.arrays.items()} for job in jobs]

    scenario = load_scenario(None, None, 0)
    card = changed(
        scenario.card,
        adapter={"top_layers": 2, "train": "AB"},
        training={"rounds": 4, "local_steps": 1},
        evaluation={"when": "never"},
        rounds={"min_tenants": 1},
    )
    model, cache = SharedBase.load(card.base).model(card)
    data = scenario.tenant_file(scenario.tenants[0]).model_dump(mode="json", exclude_none=True)
    data["privacy"]["sample_rate"] = 0.05
    settings = type(scenario.template).model_validate(data)
    tenants = []
    for number in range(count):
        draw = np.random.default_rng(number)
        records = EncodedRecords(
            users=tuple(f"u{user}" for user in range(RECORDS)),
            user=np.arange(RECORDS),
            tokens=[draw.integers(1000, 30000, 24).astype(np.int32) for _ in range(RECORDS)],
            features=draw.random((RECORDS, card.features.width), dtype=np.float32),
            labels=draw.integers(0, 2, RECORDS),
            groups=np.zeros(RECORDS, dtype=np.int64),
        )
        tenants.append(federation.SimulatedTenant(f"tenant-{number}", settings, TenantRecords(records, records)))
    if not training:
        vars(federation)["CohortTrainer"] = Idle
    result = federation.run_in_process(card, model, None if training else cache, tenants, seed=0)
    seconds = [record.seconds for record in result.records if record.kind == "train"]
    return {
        "round_s": round(float(np.median(seconds)), 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    typer.run(main)
