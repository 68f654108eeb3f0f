"""The record of what leaves: exact, whole, private, and nothing leaves without it."""

import base64
import json
from pathlib import Path

import httpx
import pytest

from fedprofile.client.egress import EgressError, EgressFile


def _request(body: bytes) -> httpx.Request:
    return httpx.Request("POST", "https://127.0.0.1:1/v1/fleet/push", headers={"x-name": "value"}, content=body)


def test_requests_are_appended_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    EgressFile(path).record(_request(b"\x00\xff one"))
    EgressFile(path).record(_request(b""))
    first, second = map(json.loads, path.read_text().splitlines())
    assert base64.b64decode(first["body"]) == b"\x00\xff one"
    assert ["x-name", "value"] in first["headers"] and first["url"].endswith("/v1/fleet/push")
    assert second["body"] == ""
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(EgressError, match="give another --record-egress"):
        EgressFile(tmp_path)


def test_nothing_is_sent_that_cannot_be_recorded() -> None:
    """A full disk, before a connection is made."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    hooks = {"request": [EgressFile(Path("/dev/full")).record]}
    with (
        httpx.Client(transport=httpx.MockTransport(answer), event_hooks=hooks) as client,
        pytest.raises(EgressError, match="nothing leaves that is not recorded"),
    ):
        client.post("https://127.0.0.1:1/", content=b"private")
    assert asked == []
