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


def test_a_line_that_was_cut_off_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    path.write_bytes(b'{"time": "cut off by a full di')
    EgressFile(path).record(_request(b"one"))
    path.write_bytes(path.read_bytes()[:-1])
    EgressFile(path).record(_request(b"two"))
    cut, *whole = path.read_text().splitlines()
    assert cut == '{"time": "cut off by a full di'
    assert [base64.b64decode(json.loads(line)["body"]) for line in whole] == [b"one", b"two"]


@pytest.mark.parametrize("text", ["user,label\nu,yes\n", '{"time": "2026-01-01", "user": "u1"}\n', "\n", "x"])
def test_another_file_is_never_appended_to(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(EgressError, match="is no record of requests; give another --record-egress"):
        EgressFile(path)
    assert path.read_text() == text


def test_a_record_of_another_mode_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    path.touch(mode=0o644)
    path.chmod(0o644)
    EgressFile(path).record(_request(b"one"))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    EgressFile(path)
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_text().splitlines()) == 1


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
