"""The same question gets the same bytes, in any process, and a reply that is not whole is none."""

from pathlib import Path

import numpy as np
import pytest
from tests.client.questions import key_of

from fedprofile.client.outbox import Outbox
from fedprofile.common.messages import Arrays, Kind, LedgerMark, Reply, Request


def _arrays(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"z.weight": rng.normal(size=(3, 4)).astype(np.float32), "a.bias": rng.normal(size=3)}


def _request(**changes: object) -> Request:
    fields: dict[str, object] = {"kind": Kind.TRAIN, "card_hash": "a" * 64, "round": 2, "arrays": _arrays()}
    return Request(**{**fields, **changes})  # type: ignore[arg-type]


def _reply() -> Reply:
    return Reply(Kind.TRAIN, "a" * 64, 2, _arrays(1), LedgerMark(7, "c" * 64))


def _same(first: Reply | None, second: Reply) -> bool:
    return (
        first is not None
        and (first.kind, first.card_hash, first.round, first.ledger)
        == (second.kind, second.card_hash, second.round, second.ledger)
        and list(first.arrays) == list(second.arrays)
        and all(first.arrays[name].dtype == value.dtype for name, value in second.arrays.items())
        and all(first.arrays[name].tobytes() == value.tobytes() for name, value in second.arrays.items())
    )


def test_a_reply_comes_back_as_it_was_put_in_any_process(tmp_path: Path) -> None:
    key = key_of(_request())
    Outbox(tmp_path / "outbox").put(key, _reply())
    assert _same(Outbox(tmp_path / "outbox").get(key), _reply())
    assert Outbox(tmp_path / "outbox").get("0" * 64) is None


def test_the_key_is_what_was_asked_and_nothing_else() -> None:
    key = key_of(_request())
    assert key == key_of(_request(ledger=LedgerMark(9, "d" * 64))), "the mark is not part of the question"
    shuffled = dict(reversed(list(_arrays().items())))
    assert key == key_of(_request(arrays=shuffled))
    changed = _arrays()
    changed["a.bias"] = np.nextafter(changed["a.bias"], 9.0)
    others = [
        _request(kind=Kind.EVALUATE),
        _request(card_hash="b" * 64),
        _request(round=3),
        _request(arrays=changed),
        _request(arrays={"z.weight": _arrays()["z.weight"]}),
        _request(arrays={**_arrays(), "z.weight": _arrays()["z.weight"].reshape(4, 3)}),
    ]
    assert len({key, *map(key_of, others)}) == 1 + len(others)


def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    Outbox(folder).put("k" * 64, _reply())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("content", [b"", b"broken", b"\xff" * 200])
def test_a_torn_file_counts_as_no_reply(tmp_path: Path, content: bytes) -> None:
    outbox = Outbox(tmp_path)
    outbox.put("1" * 64, _reply())
    (tmp_path / f"{'1' * 64}.safetensors").write_bytes(content)
    assert outbox.get("1" * 64) is None


def test_a_half_written_file_is_not_a_reply_and_is_cleared(tmp_path: Path) -> None:
    (tmp_path / f"{'1' * 64}.safetensors.part").write_bytes(b"half")
    outbox = Outbox(tmp_path)
    assert outbox.get("1" * 64) is None and not list(tmp_path.iterdir())
