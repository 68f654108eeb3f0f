"""The profile over HTTP, of a real process: what it says, and how a bad request is told so."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.serving.conftest import Serve, Served, asked

from fedprofile.client.cli import app
from fedprofile.common.cli import run_command

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def served(serve: Serve, directories: Path) -> Served:
    """Both federations."""
    return serve(directories / "buy", directories / "spend")


def test_it_says_what_predict_says(served: Served, directories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *lines = (directories / "buy" / "visits.csv").read_text().splitlines()
    own = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines if line.startswith("u7,")]
    row = {"visitor": "u7", "time": "2026-01-03", "month": "w1", "visits": 4, "device": "phone"}
    events = [{name: event[name] for name in ("visitor", "time", "action", "item")} for event in own]
    found = served.profile({"row": row, "events": events})
    for name in ("buy", "spend"):
        place = directories / name
        rows = place.parent / f"{name}.jsonl"
        rows.write_text(json.dumps(row) + "\n")
        with pytest.raises(SystemExit) as ended:
            run_command(app, "flower-client", ["predict", "--dir", str(place), "--input", str(rows), "--json"])
        assert ended.value.code == 0
        [expected] = json.loads(capsys.readouterr().out)
        entry = found[name]
        assert entry["prediction"] == {key: expected[key] for key in entry["prediction"]}
        assert entry["round"] == expected["round"]
        assert entry.get("decision") == expected.get("decision")
    # Two of the three events are before the row; without them it is another history.
    assert served.profile({"row": row, "events": events[2:]}) == served.profile({"row": row})
    assert served.profile({"row": row})["buy"]["prediction"] != found["buy"]["prediction"]


def test_requests_that_are_asked_together_get_what_each_gets_alone(served: Served) -> None:
    requests = [asked(seed, events=seed % 9) for seed in range(60)]
    alone = [served.profile(request) for request in requests]
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(served.profile, requests)) == alone


def test_decisions_are_the_judgements(served: Served) -> None:
    decided = set()
    for seed in range(60):
        entry = served.profile(asked(seed, events=seed % 7))["buy"]
        positive = entry["prediction"]["probabilities"]["yes"]
        expected = "review" if 0.4 <= positive <= 0.6 else "yes" if positive > 0.6 else "no"
        assert entry["decision"] == expected
        assert entry["reply"] == ("We hold it for you." if expected == "yes" else "")
        decided.add(expected)
    assert len(decided) > 1


def _without(request: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(request))
    place = changed[part] if part == "row" else changed[part][1]
    del place[name]
    return dict(changed)


def _with(request: dict[str, Any], part: str, name: str, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(request))
    (changed[part] if part == "row" else changed[part][1])[name] = value
    return dict(changed)


GOOD = asked()

BAD: dict[str, tuple[Any, str, str]] = {
    "a number that is none": (_with(GOOD, "row", "visits", CANARY), "row.visits", "is not a number or null"),
    "a time that is none": (_with(GOOD, "events", "time", CANARY), "events[1].time", "is not an ISO 8601"),
    "an object": (_with(GOOD, "events", "item", {CANARY: CANARY}), "events[1].item", "is not text"),
    "a missing column": (_without(GOOD, "row", "device"), "row.device", "is missing"),
    "a missing column of an event": (_without(GOOD, "events", "item"), "events[1].item", "is missing"),
    "an unknown column": (_with(GOOD, "row", CANARY, 1), "row", "holds a name that is not read here"),
    "an unknown column of an event": (_with(GOOD, "events", CANARY, 1), "events[1]", "the names are 'action', 'item'"),
    "an unknown key": (GOOD | {CANARY: CANARY}, "request", "the names are 'row', 'events'"),
    "times with and without a zone": (
        _with(GOOD, "events", "time", "2026-01-02T10:00:00Z"),
        "events[1].time",
        "has a time zone where another",
    ),
    "another user's event": (
        _with(_with(GOOD, "row", "visitor", "u1"), "events", "visitor", CANARY),
        "events[].visitor",
        "is not the user of the row",
    ),
    "no object": ([CANARY], "request", "is not an object"),
    "events that are no list": ({"row": GOOD["row"], "events": CANARY}, "events", "is not a list"),
    "too many events": ({"row": GOOD["row"], "events": GOOD["events"] * 300}, "events", "are more than 1024"),
    "a text that is too long": (_with(GOOD, "row", "month", CANARY * 10_000), "row.month", "is longer than 100000"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_field_and_expectation_and_never_its_data(served: Served, name: str) -> None:
    request, field, expected = BAD[name]
    with served.client() as client:
        response = client.post("/profile", json=request)
    assert response.status_code == 422
    problems = response.json()["problems"]
    assert any(one["field"] == field and expected in one["expected"] for one in problems), problems
    assert CANARY not in response.text and CANARY not in str(response.headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        CANARY.encode(),
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"row": NaN}',
        json.dumps(GOOD).replace('"month": "', '"month": 1e999, "x": "').encode(),
        b"1" * 5000,
    ],
)
def test_what_is_no_json_is_refused(served: Served, body: bytes) -> None:
    with served.client() as client:
        response = client.post("/profile", content=body)
    assert response.status_code == 422
    assert response.json()["error"] == "request: is not JSON in UTF-8 with finite numbers"


def test_a_request_may_not_be_large(served: Served) -> None:
    large = b'{"row": "' + b"x" * (1024 * 1024) + b'"}'
    with served.client() as client:
        for content in (large, (large[start : start + 4096] for start in range(0, len(large), 4096))):
            response = client.post("/profile", content=content)
            assert response.status_code == 413
            assert "larger than 1048576 bytes" in response.json()["error"]
        assert client.post("/profile", json=GOOD).status_code == 200


def test_nothing_is_said_without_the_token(served: Served) -> None:
    near = served.token[:-1] + ("a" if served.token[-1] != "a" else "b")
    shown: list[dict[str, str | bytes]] = [
        {},
        {"Authorization": ""},
        {"Authorization": served.token},
        {"Authorization": f"Basic {served.token}"},
        {"Authorization": f"Bearer {near}"},
        {"Authorization": f"Bearer {served.token}x"},
        {"Authorization": "Bearer é".encode()},
    ]
    paths = ["/profile", "/federations", "/openapi.json", "/v2", "/v2/models/buy", "/v2/models/buy/infer", "/nowhere"]
    with httpx.Client(base_url=served.http, timeout=60, trust_env=False) as client:
        for headers in shown:
            for path in paths:
                response = client.post(path, json=GOOD, headers=httpx.Headers(headers))  # type: ignore[arg-type]
                assert response.status_code == 401, (path, headers)
                assert response.headers["www-authenticate"] == "Bearer"
                assert served.token not in response.text
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert client.get(path).status_code == 200


def test_other_methods_and_paths_are_errors_of_the_same_form(served: Served) -> None:
    with served.client() as client:
        assert client.get("/nowhere").json() == {"error": "not found"}
        wrong = client.get("/profile")
        assert (wrong.status_code, wrong.json(), wrong.headers["allow"]) == (
            405,
            {"error": "method not allowed"},
            "POST",
        )


def test_no_answer_may_be_kept_or_framed_by_others(served: Served) -> None:
    with served.client() as client:
        for path in ("/", "/federations", "/nowhere"):
            headers = client.get(path).headers
            assert headers["cache-control"] == "no-store"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "access-control-allow-origin" not in headers


def test_facts_are_the_cards_and_the_ledgers(served: Served) -> None:
    with served.client() as client:
        found = client.get("/federations").json()
    buy = found["federations"]["buy"]
    assert buy["promise"]["epsilon"] == 2.0 and buy["promise"]["unit"] == "user" and buy["promise"]["delta"] == 2e-05
    assert buy["review"] == {"decision": "review", "band": [0.4, 0.6], "confidence": 0.0, "thresholds": {}}
    assert found["federations"]["spend"]["task"] == {"kind": "regression", "outputs": ["visits"], "low": 0, "high": 10}
    assert buy["columns"]["events"] == {"action": "text", "item": "text", "time": "time"}


def test_no_log_holds_data_or_the_token(served: Served, directories: Path) -> None:
    with served.client() as client:
        client.post("/profile", json=_with(GOOD, "row", "month", CANARY))
        client.post(f"/{CANARY}", content=CANARY)
        client.post("/profile", json=_with(GOOD, "row", "visits", CANARY))
    written = "".join(path.read_text(errors="replace") for path in directories.rglob("*.log"))
    assert CANARY not in written and served.token not in written
