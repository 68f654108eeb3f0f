"""The in-process grid delivers copies, answers each message once, and drives Flower's own strategy unmodified."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedprofile.simulations.grid import InProcessGrid


def _tenant(step: float, seen: list[float]) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        arrays = record.to_numpy_ndarrays()
        seen.append(float(arrays[0][0]))
        content = RecordDict(
            {"arrays": ArrayRecord([arrays[0] + step]), "metrics": MetricRecord({"num-examples": 1, "step": step})}
        )
        # A tenant that spoils what it received must not reach the others.
        message.content["arrays"] = ArrayRecord([np.full(3, 1e9, np.float32)])
        return Message(content, reply_to=message)

    return answer


def test_flowers_own_strategy_runs_unmodified() -> None:
    seen: list[float] = []
    grid = InProcessGrid({node: _tenant(float(node), seen) for node in (1, 2, 3)})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=2)
    assert result.arrays.to_numpy_ndarrays()[0] == pytest.approx([4.0, 4.0, 4.0])
    assert seen == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_replies_come_as_a_stream_and_each_once() -> None:
    seen: list[float] = []
    grid = InProcessGrid({node: _tenant(1.0, seen) for node in (1, 2)})

    def message(node: int) -> Message:
        content = RecordDict({"arrays": ArrayRecord([np.zeros(1, np.float32)])})
        return grid.create_message(content, "train", node, "1")

    replies = grid.send_and_receive([message(1), message(2)])
    assert seen == []
    next(iter(replies))
    assert len(seen) == 1
    identities = list(grid.push_messages([message(1)]))
    assert len(list(grid.pull_messages(identities))) == 1
    assert list(grid.pull_messages(identities)) == []
