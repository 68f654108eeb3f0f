"""The checkpoint: everything comes back, a damaged or foreign one is refused, the history is cut to it."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fedprofile.common.errors import InputError
from fedprofile.common.evaluation_tables import Interval
from fedprofile.common.messages import Kind, LedgerMark
from fedprofile.server.checkpoint import Checkpoint, read_checkpoint
from fedprofile.server.evaluation import EarlyStopping
from fedprofile.server.history import RoundRecord, append_line, cut_to, read_lines

CARD = "a" * 64


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        card_hash=CARD,
        # Not in alphabetical order: the order is the adapter's, and FedAvgM's momentum follows it.
        arrays={"z": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros((), np.float32)},
        round=3,
        evaluated=[0, 2],
        optimizer={"momentum/z": np.full((2, 3), 1 / 3), "momentum/a": np.float64(0.1) * np.ones(())},
        marks={"one": LedgerMark(7, "b" * 64)},
        stopping=EarlyStopping(4, Interval(0.6, 0.5, 0.7), 2),
        finished="",
        delivered=["one"],
        history_length=123,
        recent=[
            {"z": np.full((2, 3), place, np.float32), "a": np.float32(place) * np.ones((), np.float32)}
            for place in (1, 2)
        ],
    )


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    before = _checkpoint()
    before.write(path)
    after = read_checkpoint(path, CARD, patience=4)
    assert after is not None
    for field in fields(Checkpoint):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name in ("arrays", "optimizer"):
            assert set(old) == set(new)
            for name, value in old.items():
                assert new[name].dtype == value.dtype and new[name].tobytes() == value.tobytes()
        elif field.name == "recent":
            assert [{name: value.tobytes() for name, value in kept.items()} for kept in old] == [
                {name: value.tobytes() for name, value in kept.items()} for kept in new
            ]
        else:
            assert old == new
    assert list(after.arrays) == ["z", "a"]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert path.stat().st_mode & 0o077 == 0


def test_none_is_a_fresh_start(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "none", CARD, 0) is None


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_damaged_one_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _checkpoint().write(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="is damaged; restore"):
        read_checkpoint(path, CARD, 0)


def test_another_cards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    _checkpoint().write(path)
    with pytest.raises(InputError, match="belongs to card aaaaaaaaaaaa"):
        read_checkpoint(path, "b" * 64, 0)


def test_history_behind_the_checkpoint_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    length = append_line(path, RoundRecord(1, Kind.TRAIN, "now", 1.0))
    append_line(path, RoundRecord(2, Kind.TRAIN, "now", 1.0))
    with path.open("ab") as file:
        file.write(b'{"round": 3, "ki')
    assert [line["round"] for line in read_lines(path)] == [1, 2]
    cut_to(path, length)
    assert [line["round"] for line in read_lines(path)] == [1]
    cut_to(path, length)
    cut_to(tmp_path / "none", 0)
    with pytest.raises(InputError, match="is missing although rounds were run"):
        cut_to(tmp_path / "none", 5)
