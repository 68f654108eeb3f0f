"""What noise from a cipher stream on a grid costs: its share of a training step, and beside torch's own generator.

    python benchmarks/secure_noise.py [--steps 20]

Real steps of the deployed trainer over the built-in population's largest shop, with the real base and warm caches; the
noise of the same adapter is then drawn alone, as often. Everything runs in one process, one after the other.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from fedprofile.client.noise import noised_sum
from fedprofile.client.randomness import SecureRandomness
from fedprofile.client.segments import plan_segment
from fedprofile.client.training import PrivateTrainer, TrainingSettings
from fedprofile.simulations.scenarios import load_scenario
from fedprofile.simulations.shared_base import SharedBase
from fedprofile.simulations.tenants import read_tenants

RESULT = Path(__file__).parent / "results" / "secure_noise.json"


def main(steps: Annotated[int, typer.Option(help="Of training.")] = 20) -> None:
    """Time steps and noise."""
    scenario = load_scenario(None, None, seed=0)
    card = scenario.card
    base = SharedBase.load(card.base)
    model, cache = base.model(card)
    tenant = read_tenants(scenario, split_seed=0)[0].encoded(card, base.tokenizer)
    plan = plan_segment(card, tenant.settings)
    declared = tenant.settings.population.declared_users
    trainer = PrivateTrainer(model=model, cache=cache, settings=TrainingSettings.of(card, plan, declared))
    trainer.self_test()
    records, start = tenant.records.training, model.initial_arrays()

    def train(count: int) -> None:
        trainer.train(start, records, steps=count, randomness=SecureRandomness())

    def secure() -> None:
        noised_sum(values, 1.0, randomness)

    def plain() -> None:
        torch.normal(0.0, 1.0, (len(values),))

    train(2)
    values, randomness = np.zeros(sum(array.size for array in start.values())), SecureRandomness()
    step = median(lambda: train(1), steps)
    drawn, fast = median(secure, steps), median(plain, steps)
    result = {
        "values": len(values),
        "step_seconds": round(step, 4),
        "noise_seconds": round(drawn, 5),
        "share_of_a_step": round(drawn / step, 4),
        "times_torch_normal": round(drawn / fast, 1),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def median(run: Callable[[], None], times: int) -> float:
    """Seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    typer.run(main)
