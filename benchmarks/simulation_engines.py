"""The engines that `benchmarks/simulation.py` compares; each runs in a process of its own."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.monotonic()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from opacus.grad_sample.utils import prepare_module  # noqa: E402
from opacus.optimizers import DPOptimizer  # noqa: E402

import fedprofile.common.environment  # noqa: E402, F401  (before flwr and torch)
from fedprofile.client.sampling import TenantRecords  # noqa: E402
from fedprofile.common.card import FederationCard  # noqa: E402
from fedprofile.common.interactions import EncodedRecords  # noqa: E402
from fedprofile.common.modeling.batches import pad_tokens  # noqa: E402
from fedprofile.common.modeling.head import summed_loss  # noqa: E402
from fedprofile.common.modeling.profile_model import Prefixes, ProfileModel  # noqa: E402
from fedprofile.simulations.federation import SimulatedTenant, run_in_process  # noqa: E402
from fedprofile.simulations.scenarios import changed, load_scenario  # noqa: E402
from fedprofile.simulations.shared_base import CacheSpec, SharedBase  # noqa: E402

RECORDS, SAMPLE_RATE, STEPS, MAX_TOKENS = 200, 0.05, 5, 64
CLIP, NOISE, RATE = 0.5, 1.0, 0.01


def run(engine: str, work: dict[str, Any], folder: Path) -> dict[str, float]:
    """Run one engine.

    Args:
        engine: Its name.
        work: What the command line says.
        folder: Keeps the mapped cache between engines.

    Returns:
        Seconds of set-up, of filling the cache, and of a steady round.
    """
    if engine == "ray":
        return _ray(work)
    return {"sequential": _sequential, "cached": _sequential, "cohort": _cohort, "later": _cohort}[engine](
        work, engine, folder
    )


def records_of(tenant: int, width: int) -> EncodedRecords:
    """200 users with a record each, of lognormal length: median 25 tokens, at most 64."""
    draw = np.random.default_rng(tenant)
    lengths = np.clip(np.exp(draw.normal(3.2, 0.6, RECORDS)), 6, MAX_TOKENS).astype(int)
    return EncodedRecords(
        users=tuple(f"u{number}" for number in range(RECORDS)),
        user=np.arange(RECORDS),
        tokens=[draw.integers(1000, 30000, length).astype(np.int32) for length in lengths],
        features=draw.random((RECORDS, width), dtype=np.float32),
        labels=draw.integers(0, 2, RECORDS),
        groups=np.zeros(RECORDS, dtype=np.int64),
    )


def card_of(work: dict[str, Any]) -> FederationCard:
    """The built-in scenario's card with this workload's settings."""
    return changed(
        load_scenario(None, None, 0).card,
        adapter={"top_layers": work["top_layers"], "pooling": work["pooling"], "train": work["train"], "rank": 8},
        history={"max_tokens": MAX_TOKENS},
        training={
            "rounds": work["rounds"],
            "local_steps": STEPS,
            "optimizer": "adam",
            "learning_rate": RATE,
            "head_learning_rate": RATE,
        },
        evaluation={"when": "never"},
        rounds={"min_tenants": 1},
    )


def _cohort(work: dict[str, Any], engine: str, folder: Path) -> dict[str, float]:
    card = card_of(work)
    base = SharedBase.load(card.base, CacheSpec("full", folder / "cache"), device=work["device"])
    model, cache = base.model(card)
    records = [records_of(tenant, card.features.width) for tenant in range(work["tenants"])]
    template = load_scenario(None, None, 0)
    file = template.tenant_file(template.tenants[0], epsilon=8.0)
    data = file.model_dump(mode="json", exclude_none=True)
    data["privacy"] |= {"sample_rate": SAMPLE_RATE, "clip_norm": CLIP, "records_per_user": 1}
    data["population"]["declared_users"] = RECORDS
    settings = type(file).model_validate(data)
    tenants = [
        SimulatedTenant(f"t{number}", settings, TenantRecords(found, found)) for number, found in enumerate(records)
    ]
    setup = time.monotonic()
    assert cache is not None
    for found in records:
        cache.fill(found.tokens)
    filled = time.monotonic()
    result = run_in_process(card, model, cache, tenants, seed=0)
    rounds = [record.seconds for record in result.records if record.kind == "train"]
    return _times(setup, filled, rounds)


def _sequential(work: dict[str, Any], engine: str, folder: Path) -> dict[str, float]:
    card = card_of(work)
    spec = CacheSpec("full" if engine == "cached" else "none")
    model, cache = SharedBase.load(card.base, spec, device=work["device"]).model(card)
    records = [records_of(tenant, card.features.width) for tenant in range(work["tenants"])]
    setup = time.monotonic()
    if cache is not None:
        for found in records:
            cache.fill(found.tokens)
    filled = time.monotonic()
    seconds = []
    arrays = model.initial_arrays()
    for _ in range(work["rounds"]):
        started = time.monotonic()
        total = {name: np.zeros_like(value) for name, value in arrays.items()}
        for found in records:
            model.set_arrays(arrays)
            parameters = list(model.trainables().values())
            train_one(model, parameters, records_loss(model, found, cache))
            for name, value in model.get_arrays().items():
                total[name] += (value - arrays[name]) / len(records)
        arrays = {name: value + total[name] for name, value in arrays.items()}
        seconds.append(time.monotonic() - started)
    return _times(setup, filled, seconds)


def records_loss(
    model: ProfileModel, records: EncodedRecords, cache: Prefixes | None
) -> Callable[[np.ndarray], torch.Tensor]:
    """The summed loss of some records, padded to the longest of them."""

    def summed(places: np.ndarray) -> torch.Tensor:
        tokens = [records.tokens[place] for place in places]
        batch = model.batch(tokens, max(map(len, tokens)))
        logits = model.logits_of(batch, tokens, records.features[places], cache)
        return summed_loss(logits, torch.from_numpy(records.labels[places]), model.card.task)

    return summed


def train_one(model: Any, parameters: list[Any], loss: Callable[[np.ndarray], torch.Tensor]) -> None:
    """One tenant's local steps by Opacus's own hooks and optimiser."""
    hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", batch_first=True)
    optimizer = DPOptimizer(
        torch.optim.Adam(parameters, lr=RATE),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=SAMPLE_RATE * RECORDS,
    )
    draw = np.random.default_rng()
    try:
        for _ in range(STEPS):
            places = np.flatnonzero(draw.random(RECORDS) < SAMPLE_RATE)
            optimizer.zero_grad()
            if len(places):
                loss(places).backward()
            else:
                for parameter in parameters:
                    parameter.grad_sample = torch.zeros((0, *parameter.shape), device=parameter.device)
            optimizer.step()
    finally:
        optimizer.zero_grad()
        hooks.cleanup()


def _ray(work: dict[str, Any]) -> dict[str, float]:
    """As Flower's Opacus examples: everything is built in every message."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    card = card_of(work)
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        model = _plain_model(work, card)
        trainables = {name: value for name, value in model.named_parameters() if value.requires_grad}
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        with torch.no_grad():
            for name, value in trainables.items():
                value.copy_(torch.from_numpy(record[name].numpy()))
        found = records_of(int(context.node_config["partition-id"]), card.features.width)
        _train_plainly(model, list(trainables.values()), found)
        arrays = ArrayRecord({name: _array(value.detach().cpu().numpy()) for name, value in trainables.items()})
        metrics = MetricRecord({"num-examples": RECORDS})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    ends: list[float] = []

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            if sum(not reply.has_error() for reply in replies) < work["tenants"]:
                raise RuntimeError("a client failed")
            found = super().aggregate_train(server_round, replies)
            ends.append(time.monotonic())
            return found

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        start = _plain_model(work, card).named_parameters()
        arrays = ArrayRecord(
            {name: _array(value.detach().cpu().numpy()) for name, value in start if value.requires_grad}
        )
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=work["tenants"])
        ends.append(time.monotonic())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=work["rounds"])

    resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0.25 if work["device"] == "cuda" else 0.0}
    run_simulation(server, client, work["tenants"], backend_config={"client_resources": resources})
    return _times(ends[0], ends[0], list(np.diff(ends)))


def _plain_model(work: dict[str, Any], card: FederationCard) -> Any:
    """The same model by transformers and PEFT alone, without this project's checks of it."""
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModel

    from fedprofile.common.modeling.base import embedded_folder

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = AutoModel.from_pretrained(
                str(embedded_folder()),
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                add_pooling_layer=False,
            )
            layers = range(base.config.num_hidden_layers)[-work["top_layers"] :]
            lora = LoraConfig(
                r=8,
                lora_alpha=16,
                target_modules=["query", "value"],
                layers_to_transform=list(layers),
                lora_dropout=0.0,
            )
            self.encoder = get_peft_model(base, lora)
            for name, value in self.encoder.named_parameters():
                value.requires_grad_("lora_B" in name or ("lora_A" in name and work["train"] == "AB"))
            self.head = nn.Linear(base.config.hidden_size + card.features.width, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            if work["pooling"] == "last":
                pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
            else:
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            logits: torch.Tensor = self.head(torch.cat([pooled, features], dim=1))
            return logits

    return Plain().to(work["device"]).train()


def _train_plainly(model: Any, parameters: list[Any], records: EncodedRecords) -> None:
    """Local steps by Opacus's `PrivacyEngine`, as its and Flower's tutorials have it."""
    from itertools import islice

    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    batch = pad_tokens(records.tokens, 0, MAX_TOKENS)
    data = TensorDataset(batch.ids, batch.mask, torch.from_numpy(records.features), torch.from_numpy(records.labels))
    loader = DataLoader(data, batch_size=int(SAMPLE_RATE * RECORDS))
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.Adam(parameters, lr=RATE),
        data_loader=loader,
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
    )
    device = parameters[0].device
    for parts in islice(loader, STEPS):
        ids, mask, features, labels = (part.to(device) for part in parts)
        if not len(labels):
            continue  # Hugging Face models cannot run on nothing.
        longest = int(mask.sum(1).max())
        optimizer.zero_grad()
        logits = private(ids[:, :longest], mask[:, :longest], features)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()


def _array(value: np.ndarray) -> Any:
    from flwr.app import Array

    return Array(np.ascontiguousarray(value))


def _times(setup: float, filled: float, rounds: list[float]) -> dict[str, float]:
    steady = rounds[1:] or rounds
    found = {"setup_s": setup - STARTED, "fill_s": filled - setup, "round_s": sum(steady) / len(steady)}
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))))
