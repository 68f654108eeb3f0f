"""From a cell to a record's label, for each kind of task.

An error says what was expected, by the card's own words, and never what stands in the cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from fedprofile.client.cells import CellError, read_number, read_text
from fedprofile.common.tasks import Label, LabelsTask, RegressionTask, TaskSpec


def label_reader(task: TaskSpec) -> Callable[[Any], Label]:
    """How a task's labels are read.

    Args:
        task: The card's.

    Returns:
        From a cell as found to its label; raises `CellError` where it holds none.
    """
    if isinstance(task, RegressionTask):
        return partial(_target, task)
    assert isinstance(task, LabelsTask)
    return partial(_one_of, {label: place for place, label in enumerate(task.labels)})


def _one_of(places: dict[str, int], cell: Any) -> Label:
    place = places.get(read_text(cell) or "")
    if place is None:
        raise CellError(f"is not one of the card's labels ({_listed(places)})")
    return place


def _target(task: RegressionTask, cell: Any) -> Label:
    number = read_number(cell)
    if number is None:
        raise CellError("is empty; every labelled row needs its target, a number")
    return task.scaled(number)


def _listed(labels: dict[str, int]) -> str:
    return ", ".join(labels) if len(labels) <= 10 else f"{len(labels)} labels"
