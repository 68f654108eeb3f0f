"""The queue, the batches and the timeouts, with real models of this process behind the real gate."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.serving.conftest import asked

from fedprofile.client.serving.access import Token
from fedprofile.client.serving.batching import Batcher, QueueFullError
from fedprofile.client.serving.federation import Federation, open_all
from fedprofile.client.serving.gate import Gate
from fedprofile.client.serving.http import build_app
from fedprofile.client.serving.inference_http import add_inference
from fedprofile.client.serving.service import Service
from fedprofile.common.interactions import Example

TOKEN = Token("t" * 40)


@pytest.fixture(scope="module")
def federations(directories: Path) -> dict[str, Federation]:
    """Both."""
    return open_all([directories / "buy", directories / "spend"])


MakeBatcher = Callable[..., tuple[Batcher, threading.Event]]


@pytest.fixture
def make_batcher(federations: dict[str, Federation]) -> Iterator[MakeBatcher]:
    """A function that gives a batcher whose models do nothing until an event is set."""
    made: list[tuple[Batcher, threading.Event]] = []

    def make(**options: Any) -> tuple[Batcher, threading.Event]:
        batcher, free = Batcher(federations, **{"max_batch": 32, "max_waiting": 256} | options), threading.Event()
        made.append((batcher, free))

        def hold() -> None:
            free.wait(300)

        batcher.between(hold)
        return batcher, free

    yield make
    for batcher, free in made:
        free.set()
        batcher.close()


@asynccontextmanager
async def _asking(
    batcher: Batcher, federations: dict[str, Federation], **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    service = Service(federations, batcher, **{"timeout": 300, "max_events": 100} | options)
    app = build_app(service, page=False)
    add_inference(app, service)
    gate = Gate(app, token=TOKEN, open_paths=[], max_body=100_000, timeout=1)
    headers = {"Authorization": f"Bearer {TOKEN.value}"}
    transport = httpx.ASGITransport(gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers, timeout=300) as client:
        yield client


def test_one_base_is_loaded_once(federations: dict[str, Federation]) -> None:
    places = [
        {parameter.data_ptr() for parameter in one.profiler.model.parameters() if not parameter.requires_grad}
        for one in federations.values()
    ]
    assert places[0] == places[1] and len(places[0]) > 10


def test_what_waits_is_bounded_and_all_else_is_answered(
    make_batcher: MakeBatcher, federations: dict[str, Federation]
) -> None:
    batcher, free = make_batcher(max_waiting=20)

    async def ask() -> list[httpx.Response]:
        async with _asking(batcher, federations) as client:
            waiting = [asyncio.create_task(client.post("/profile", json=asked(seed))) for seed in range(100)]
            done: set[asyncio.Task[httpx.Response]] = set()
            while len(done) < 80:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
            given = {"name": "request", "datatype": "BYTES", "shape": [1], "data": ["{}"]}
            full = await client.post("/v2/models/buy/infer", json={"inputs": [given]})
            assert full.status_code == 400, "a request that cannot be read takes no place"
            free.set()
            return await asyncio.gather(*waiting)

    answers = asyncio.run(ask())
    assert Counter(answer.status_code for answer in answers) == {200: 20, 503: 80}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1 and "ask again later" in refused.json()["error"]


def test_an_answer_that_does_not_come_in_time_is_said_so_and_not_computed(
    make_batcher: MakeBatcher, federations: dict[str, Federation]
) -> None:
    batcher, free = make_batcher(max_waiting=2)

    async def ask() -> None:
        async with _asking(batcher, federations, timeout=0.2) as client:
            late = await asyncio.gather(*(client.post("/profile", json=asked(seed)) for seed in range(2)))
            assert [answer.status_code for answer in late] == [503, 503]
            assert "did not answer in time" in late[0].json()["error"] and late[0].headers["retry-after"]
            free.set()
            for seed in range(5):
                response = await client.post("/profile", json=asked(seed))
                while response.status_code == 503:  # The two that nobody waits for any more leave their places first.
                    response = await client.post("/profile", json=asked(seed))
                assert response.status_code == 200

    asyncio.run(ask())


def _examples(federation: Federation, count: int) -> list[Example]:
    from fedprofile.client.given import GivenRows

    requests = [asked(seed, events=seed % 9) for seed in range(count)]
    card = federation.profiler.card
    return [GivenRows(one["row"], one["events"]).example(federation.tenant, card) for one in requests]


def test_those_who_wait_are_answered_together_and_alike(
    make_batcher: MakeBatcher, federations: dict[str, Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler = federations["buy"].profiler
    examples = _examples(federations["buy"], 20)
    alone = [profiler.scores([example])[0].tolist() for example in examples]
    sizes: list[int] = []
    predict = profiler.model.predict

    def counted(records: Any) -> Any:
        sizes.append(len(records))
        return predict(records)

    monkeypatch.setattr(profiler.model, "predict", counted)
    batcher, free = make_batcher(max_batch=8)
    answers = [batcher.submit({"buy": [example]}) for example in examples]
    free.set()
    assert [answer.result(300)["buy"].scores[0].tolist() for answer in answers] == alone
    assert sizes == [8, 8, 4]


class Unspeakable(str):
    """A text that cannot be rendered: no request holds one, but some error must come from one record alone."""

    def __format__(self, specification: str) -> str:
        raise ArithmeticError


def test_one_requests_error_is_not_anothers(make_batcher: MakeBatcher, federations: dict[str, Federation]) -> None:
    good = _examples(federations["buy"], 3)
    bad = Example("given", {"visits": 1.0, "device": "phone", "month": Unspeakable("w1")})
    batcher, free = make_batcher()
    answers = [batcher.submit({"buy": [example]}) for example in (good[0], bad, *good[1:])]
    free.set()
    with pytest.raises(ArithmeticError):
        answers[1].result(300)
    expected = federations["buy"].profiler.scores(good)
    found = [answers[place].result(300)["buy"].scores[0].tolist() for place in (0, 2, 3)]
    assert found == expected.tolist()


def test_what_was_taken_is_answered_before_the_end(
    make_batcher: MakeBatcher, federations: dict[str, Federation]
) -> None:
    batcher, free = make_batcher()
    answers = [batcher.submit({"buy": [example]}) for example in _examples(federations["buy"], 5)]
    free.set()
    batcher.close()
    assert all(answer.done() and answer.exception() is None for answer in answers)
    with pytest.raises(QueueFullError):
        batcher.submit({"buy": _examples(federations["buy"], 1)})


def test_an_error_within_is_one_sentence_without_data(
    make_batcher: MakeBatcher, federations: dict[str, Federation], caplog: pytest.LogCaptureFixture
) -> None:
    batcher, free = make_batcher()
    free.set()

    def explain(profiler: Any, example: Example) -> dict[str, Any]:
        raise ValueError(str(example.row["month"]))

    async def ask() -> httpx.Response:
        async with _asking(batcher, federations, explain=explain) as client:
            return await client.post("/explain", json=asked())

    response = asyncio.run(ask())
    assert response.status_code == 500
    assert response.json() == {"error": "this failed here; the log names the error's type."}
    assert "a request failed: ValueError" in caplog.text and asked()["row"]["month"] not in caplog.text


def test_explanations_are_there_where_something_explains(
    make_batcher: MakeBatcher, federations: dict[str, Federation]
) -> None:
    batcher, free = make_batcher()
    free.set()

    def explain(profiler: Any, example: Example) -> dict[str, Any]:
        return {"events": len(example.events), "card": profiler.card.name}

    async def ask(**options: Any) -> tuple[httpx.Response, Any]:
        async with _asking(batcher, federations, **options) as client:
            return await client.post("/explain", json=asked(events=3)), (await client.get("/federations")).json()

    found, facts = asyncio.run(ask(explain=explain))
    assert found.json() == {
        "explanation": {"buy": {"events": 3, "card": "buy"}, "spend": {"events": 3, "card": "spend"}}
    }
    assert facts["explains"]
    none, facts = asyncio.run(ask())
    assert none.status_code == 404 and not facts["explains"]


def test_explanations_that_wait_are_bounded(make_batcher: MakeBatcher, federations: dict[str, Federation]) -> None:
    batcher, free = make_batcher()

    async def ask() -> Counter[int]:
        async with _asking(batcher, federations, explain=lambda profiler, example: {}) as client:
            waiting = [asyncio.create_task(client.post("/explain", json=asked(seed))) for seed in range(10)]
            done: set[asyncio.Task[httpx.Response]] = set()
            while len(done) < 6:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
            free.set()
            return Counter(answer.status_code for answer in await asyncio.gather(*waiting))

    assert asyncio.run(ask()) == {200: 4, 503: 6}


def test_a_body_that_does_not_come_is_not_waited_for(federations: dict[str, Federation]) -> None:
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(300)

    async def send(message: Any) -> None:
        sent.append(message)

    async def unreached(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    gate = Gate(unreached, token=TOKEN, open_paths=[], max_body=10, timeout=0.05)
    scope = {"type": "http", "path": "/profile", "headers": [(b"authorization", f"Bearer {TOKEN.value}".encode())]}
    asyncio.run(gate(scope, never, send))
    assert sent[0]["status"] == 408
