"""From a cell to a record's label, for each kind of task.

An error says what was expected, by the card's own words, and never what stands in the cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from fedprofile.client.cells import CellError, read_number, read_text
from fedprofile.common.tasks import Label, LabelsTask, MultilabelTask, RankingTask, RegressionTask, TaskSpec


def label_reader(task: TaskSpec) -> Callable[[Any], Label]:
    """How a task's labels are read.

    Args:
        task: The card's.

    Returns:
        From a cell as found to its label; raises `CellError` where it holds none.
    """
    match task:
        case RegressionTask():
            return partial(_target, task)
        case MultilabelTask():
            return partial(_several_of, _places(task.labels), task.separator)
        case LabelsTask():
            return partial(_one_of, _places(task.labels), "labels")
        case RankingTask():
            return partial(_one_of, _places(task.candidates), "candidates")
    raise TypeError(task.kind)


def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _one_of(places: dict[str, int], kind: str, cell: Any) -> Label:
    place = places.get(read_text(cell) or "")
    if place is None:
        raise CellError(f"is not one of the card's {kind} ({_listed(places, kind)})")
    return place


def _several_of(places: dict[str, int], separator: str, cell: Any) -> Label:
    """A set of labels as bits. Empty text and an empty list are records without a label; nothing at all is none."""
    names = cell
    if not isinstance(cell, list | tuple):
        text = read_text(cell)
        if text is None:
            raise CellError("is nothing; an empty text says that the record has none of the labels")
        names = text.split(separator) if text else []
    found = 0
    for name in names:
        place = places.get(name.strip()) if isinstance(name, str) else None
        if place is None:
            raise CellError(
                f"does not hold the card's labels ({_listed(places, 'labels')}) with '{separator}' between them"
            )
        found |= 1 << place
    return found


def _target(task: RegressionTask, cell: Any) -> Label:
    number = read_number(cell)
    if number is None:
        raise CellError("is empty; every labelled row needs its target, a number")
    return task.scaled(number)


def _listed(names: dict[str, int], kind: str) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{len(names)} {kind}"
