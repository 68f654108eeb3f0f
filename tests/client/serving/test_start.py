"""How `serve` starts, takes new adapters, and ends."""

import asyncio
import json
import shutil
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.serving.conftest import Serve, adapter, asked, start_process

from fedprofile.client.directory import TenantDirectory
from fedprofile.client.received import AdapterFolder
from fedprofile.common.adapters import arrays_hash
from fedprofile.server.certificates import new_authority, new_server_certificate


def _refused(*roots: Path, options: tuple[str, ...] = ()) -> str:
    process = start_process(*roots, options=options)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, ""), err
    return str(json.loads(err.splitlines()[-1])["error"])


def test_two_populations_are_not_one_profile(copies: Path) -> None:
    segment = copies / "spend" / "segment.json"
    for old, new in (('"population": "shop"', '"population": "other"'), ("populations/shop.sqlite", "other.sqlite")):
        text = segment.read_text()
        assert old in text
        segment.write_text(text.replace(old, new))
        assert "one profile is of one population" in _refused(copies / "buy", copies / "spend")
        segment.write_text(text)


def test_one_federation_is_served_once(copies: Path) -> None:
    shutil.copytree(copies / "buy", copies / "again")
    assert "is called 'buy', as one given before" in _refused(copies / "buy", copies / "again")
    assert "given twice" in _refused(copies / "buy", copies / "spend" / ".." / "buy")


def test_what_cannot_be_served_is_refused(copies: Path) -> None:
    assert "give --expose, and --tls-cert and --tls-key" in _refused(copies / "buy", options=("--host", "0.0.0.0"))
    lonely = ("--host", "0.0.0.0", "--expose")
    assert "give --expose, and --tls-cert and --tls-key" in _refused(copies / "buy", options=lonely)
    (copies / "buy" / "serve.token").write_text("x" * 43)
    (copies / "buy" / "serve.token").chmod(0o644)
    assert "has mode 644" in _refused(copies / "buy")
    (copies / "buy" / "serve.token").chmod(0o600)
    (copies / "buy" / "serve.token").write_text("short")
    assert "holds no token of at least 32" in _refused(copies / "buy")
    (copies / "buy" / "serve.token").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "cannot be listened at" in _refused(copies / "buy", options=("--port", port))
        assert "cannot be listened at" in _refused(copies / "buy", options=("--grpc-port", port))
    (copies / "buy" / "adapters" / "versions.json").unlink()
    assert "no adapter has come yet" in _refused(copies / "buy")


def test_the_token_is_made_once_and_is_its_owners(serve: Serve, copies: Path) -> None:
    served = serve(copies / "spend", options=("--no-grpc",))
    path = copies / "spend" / "serve.token"
    assert served.grpc is None and path.stat().st_mode & 0o777 == 0o600 and len(served.token) >= 43
    served.process.send_signal(signal.SIGTERM)
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0 and err == "" and served.token not in out
    assert serve(copies / "spend", options=("--no-grpc",)).token == served.token


def test_others_can_ask_over_tls_where_a_person_says_so(serve: Serve, copies: Path) -> None:
    authority = new_authority("test")
    issued = new_server_certificate(authority, "localhost")
    issued.write(copies / "key.pem", copies / "cert.pem")
    tls = ("--tls-cert", str(copies / "cert.pem"), "--tls-key", str(copies / "key.pem"))
    served = serve(copies / "buy", options=("--host", "0.0.0.0", "--expose", *tls))
    port = served.http.rpartition(":")[2]
    assert served.http.startswith("https://")
    context = ssl.create_default_context(cadata=authority.certificate_pem().decode())
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        found = client.post(f"https://localhost:{port}/profile", json=_of_buy(), headers=served.headers)
        assert found.status_code == 200
        # The page shows a token in its address; it is for this machine alone.
        assert client.get(f"https://localhost:{port}/", headers=served.headers).status_code == 404


def _of_buy() -> dict[str, Any]:
    return asked(3)


def test_a_new_rounds_adapter_is_taken_and_no_request_is_lost(serve: Serve, copies: Path) -> None:
    served = serve(copies / "buy")
    request = _of_buy()
    before = served.profile(request)["buy"]
    assert before["round"] == 1
    found: list[dict[str, Any]] = []
    taken = threading.Event()

    def ask() -> None:
        with served.client() as client:
            while not taken.is_set():
                response = client.post("/profile", json=request)
                assert response.status_code == 200
                found.append(response.json()["profile"]["buy"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    arrays = adapter(copies / "buy", 2, seed=9)
    end = time.monotonic() + 120
    while time.monotonic() < end and (not found or found[-1]["round"] != 2):
        time.sleep(0.05)
    taken.set()
    for thread in threads:
        thread.join()
    after = served.profile(request)["buy"]
    assert after["adapter"] == arrays_hash(arrays) != before["adapter"]
    assert after["prediction"] != before["prediction"]
    # Every answer is one of the two models' whole, and names it.
    assert {entry["round"] for entry in found} == {1, 2}
    assert all(entry == (before if entry["round"] == 1 else after) for entry in found)
    # One that is damaged is named and left.
    aside = Path(shutil.copytree(copies / "buy", copies / "aside"))
    adapter(aside, 3, seed=10)
    (copies / "buy" / "adapters" / "round-0003.safetensors").write_bytes(b"damaged")
    shutil.copyfile(aside / "adapters" / "versions.json", copies / "buy" / "adapters" / "versions.json")
    log = copies / "buy" / "client.log"
    end = time.monotonic() + 120
    while time.monotonic() < end and "the newest adapter is not taken" not in log.read_text():
        time.sleep(0.05)
    assert "the newest adapter is not taken" in log.read_text() and "round 2 is served now" in log.read_text()
    assert served.profile(request)["buy"] == after


def test_it_follows_the_tenants_choice_and_logs_each_decision(serve: Serve, copies: Path) -> None:
    """Rolled back by one command; thresholds of the group that the request names; a line before each answer."""
    for number in (2, 3):
        adapter(copies / "buy", number, seed=number)
    settings = copies / "buy" / "tenant.toml"
    settings.write_text(
        settings.read_text().replace("band = [0.4, 0.6]", "thresholds = { north = 0.000001, south = 0.999999 }")
        + '\n[decisions]\nlog = "decisions.jsonl"\n'
    )
    served = serve(copies / "buy")
    request = _of_buy()
    decided = {}
    for region in ("north", "south"):
        request["row"]["region"] = region
        entry = served.profile(request)["buy"]
        assert entry["round"] == 3
        decided[region] = entry["decision"]
    assert decided == {"north": "yes", "south": "no"}
    del request["row"]["region"]
    with served.client() as client:
        assert client.post("/profile", json=request).status_code == 422
        # The page asks for the columns that are named here, and says what is done with them.
        facts = client.get("/federations").json()["federations"]["buy"]
        assert facts["columns"]["row"]["region"] == "text" and set(facts["review"]["thresholds"]) == {"north", "south"}
        assert client.post("/explain", json=request | {"row": request["row"] | {"region": "north"}}).status_code == 200
    request["row"]["region"] = "north"
    place = TenantDirectory(copies / "buy")
    card = place.read_agreed_card()
    assert card is not None
    AdapterFolder(place, card.hash).use(1)
    end = time.monotonic() + 120
    while time.monotonic() < end and served.profile(request)["buy"]["round"] != 1:
        time.sleep(0.05)
    assert served.profile(request)["buy"]["round"] == 1
    lines = [json.loads(line) for line in (copies / "buy" / "decisions.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines[:2]] == ["yes", "no"]
    assert [line["outcome"] for line in lines if line["way"] == "explain"] == ["yes"]
    assert lines[0]["way"] == "serve" and lines[-1]["round"] == 1 and lines[0]["round"] == 3
    # What cannot be logged is not answered.
    (copies / "buy" / "decisions.jsonl").unlink()
    (copies / "buy" / "decisions.jsonl").mkdir()
    with served.client() as client:
        for path, key in (("/profile", "profile"), ("/explain", "explanation")):
            answer = client.post(path, json=request)
            assert answer.status_code == 500 and key not in answer.json()


def test_an_explanation_is_of_the_same_prediction(serve: Serve, copies: Path) -> None:
    served = serve(copies / "buy", copies / "spend")
    request = asked(4)
    said = served.profile(request)
    with served.client() as client:
        found = client.post("/explain", json=request).json()["explanation"]
    assert found["buy"]["score"] == pytest.approx(said["buy"]["prediction"]["probabilities"]["yes"], abs=1e-6)
    assert found["spend"]["score"] == pytest.approx(said["spend"]["prediction"]["visits"], abs=1e-4)
    assert [part["kind"] for part in found["buy"]["parts"]] == ["event"] * 5 + ["record"]
    assert any(part["effect"] for part in found["buy"]["parts"])


def test_what_is_being_answered_is_answered_before_the_end(serve: Serve, copies: Path) -> None:
    served = serve(copies / "buy", copies / "spend")

    async def ask_and_end() -> list[int]:
        async with httpx.AsyncClient(
            base_url=served.http, headers=served.headers, timeout=60, trust_env=False
        ) as client:
            waiting = [asyncio.create_task(client.post("/profile", json=asked(seed))) for seed in range(50)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert done
            served.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        return [answer.status_code for answer in answers if isinstance(answer, httpx.Response)]

    statuses = asyncio.run(ask_and_end())
    served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert set(statuses) == {200}
