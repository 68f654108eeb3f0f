"""What tracking has written, read back by what each library gives for it."""

import importlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[tuple[str, int], list[float]]


@dataclass
class TrackedRun:
    """One run of a folder.

    Args:
        name: Of the run.
        notes: What holds for the whole run; everything that is there.
        figures: Values by name and round; everything that is there.
    """

    name: str
    notes: dict[str, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=lambda: defaultdict(list))


def read_runs(kind: str, folder: Path) -> list[TrackedRun]:
    """Every run of a folder, by name and in the order in which they began."""
    return {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}[kind](folder)


def _tensorboard(folder: Path) -> list[TrackedRun]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = []
    for path in sorted(folder.iterdir()):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        tags: dict[str, Any] = events.Tags()
        assert {name for name, found in tags.items() if found} <= {"scalars", "tensors"}
        run = TrackedRun(path.name)
        for tag in tags["tensors"]:
            newest = events.Tensors(tag)[-1].tensor_proto.string_val
            run.notes[tag.removesuffix("/text_summary")] = newest[0].decode()
        for tag in tags["scalars"]:
            for event in events.Scalars(tag):
                run.figures[tag, event.step].append(event.value)
        runs.append(run)
    return runs


def _mlflow(folder: Path) -> list[TrackedRun]:
    from mlflow import MlflowClient

    client = MlflowClient(str(folder / "mlflow" / "store"))
    runs = []
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]):
            tags = dict(found.data.tags)
            run = TrackedRun(tags.pop("mlflow.runName"), tags)
            assert not found.data.params and found.info.user_id == "unknown" and found.info.status == "FINISHED"
            assert not list(client.list_artifacts(found.info.run_id))
            for name in found.data.metrics:
                for metric in client.get_metric_history(found.info.run_id, name):
                    run.figures[name, metric.step].append(metric.value)
            runs.append(run)
    return runs


def _wandb(folder: Path) -> list[TrackedRun]:
    import json

    runs = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        run = TrackedRun("")
        for record in _wandb_records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            # The last ones say which library wrote it, and what it derives from the others.
            assert kind in ("run", "history", "config", "metric", "header", "footer", "summary", "exit", "telemetry"), (
                kind
            )
            if kind == "run":
                run.name = record.run.display_name
                assert record.run.host == "none" and not record.run.git.remote_url
                run.notes |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if kind == "config":
                run.notes |= {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                    for item in record.config.update
                }
            if kind == "history":
                row = {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
                }
                step = row.pop("round")
                for name, value in row.items():
                    if name not in ("_runtime", "_step", "_timestamp", "started"):
                        run.figures[name, step].append(value)
        run.notes.pop("_wandb")
        runs.append(run)
    return runs


def _wandb_records(data: bytes) -> Iterator[Any]:
    """W&B has no reader of its files in Python: LevelDB's log format, in blocks of 32 KiB, over its own messages."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    place, parts = 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
