"""What is predicted: the kinds of task, with their labels as numbers.

    binary       one of two labels
    multiclass   one of several labels
    regression   a number within a public range

A label is a number that is never negative, so that -1 stands for one that is not known: an index in `labels`, or the
target clipped to the card's public range and scaled to [0, 1].
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from fedprofile.common.config import Frozen

OTHER_GROUP = "other"
"""Where every user goes whose group value is not on the card."""

Label = int | float
"""Of one record; see the module's docstring."""

Labels = NDArray[np.int64 | np.float64]
"""Of some records: [n]."""


class GroupSpec(Frozen):
    """One attribute for fairness tables. It never enters the text or the features."""

    attribute: str
    values: tuple[str, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _values_are_distinct(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) != len(values) or OTHER_GROUP in values:
            raise ValueError(f"values must be distinct and without '{OTHER_GROUP}', which is always there")
        return values

    @property
    def all_values(self) -> tuple[str, ...]:
        """The values of the card followed by `other`."""
        return (*self.values, OTHER_GROUP)


class TaskSpec(Frozen):
    """What all kinds have in common."""

    kind: str
    group: GroupSpec | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the head's outputs are called, in order."""
        raise NotImplementedError

    @property
    def unknown(self) -> Label:
        """The label of a record whose label is not known."""
        return -1

    @property
    def groups(self) -> int:
        """How many groups the tables tell apart; one where the card has no group attribute."""
        return 1 if self.group is None else len(self.group.all_values)

    def as_array(self, labels: Sequence[Label]) -> Labels:
        """The labels of some records.

        Args:
            labels: One for each record.

        Returns:
            [n], in the number format of the kind.
        """
        return np.array(labels, dtype=np.int64)

    def made_up(self, numbers: NDArray[np.int64]) -> Labels:
        """Labels of synthetic records, for self-tests.

        Args:
            numbers: Of the records, [n].

        Returns:
            Every label, and none unknown.
        """
        return numbers % len(self.outputs)

    def shares(self, known: Labels, records: int) -> dict[str, float]:
        """How the labels of some records are spread, for the tenant's own reading; exact.

        Args:
            known: The labels that are known.
            records: How many records there are.

        Returns:
            Name of a label, or of a part of the range, -> its share of the records.
        """
        counts = Counter(map(self.name_of, known))
        return {name: counts[name] / max(1, records) for name in self.names}

    @property
    def names(self) -> tuple[str, ...]:
        """What `name_of` gives, in order."""
        return self.outputs

    def name_of(self, label: Label) -> str:
        """A known label as a person would say it; of a number, the part of the range that it lies in."""
        return self.names[int(label)]


class LabelsTask(TaskSpec):
    """A kind whose outputs are named labels."""

    labels: tuple[str, ...] = Field(min_length=2)
    """In order."""

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be distinct")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels


class BinaryTask(LabelsTask):
    """One of two labels, of which the second is the positive one."""

    kind: Literal["binary"]
    false_positive_rate: float | None = Field(default=None, gt=0, lt=1)
    """For alarms: the share of negatives that may be called positive. Recall at this rate is then reported as well."""

    @model_validator(mode="after")
    def _labels_are_two(self) -> Self:
        if len(self.labels) != 2:
            raise ValueError("a binary task has exactly two labels")
        return self


class MulticlassTask(LabelsTask):
    """One of several labels."""

    kind: Literal["multiclass"]


class RegressionTask(TaskSpec):
    """A number.

    The range is public and no part of the data: targets are clipped to it before anything else is done with them, and
    predictions never leave it.
    """

    kind: Literal["regression"]
    target: str = Field(min_length=1)
    """What the number is, for people and for the column of predictions."""
    low: float
    high: float
    loss: Literal["squared", "huber"] = "squared"
    huber_delta: float = Field(default=0.1, gt=0, le=1)
    """For `huber`: above this error, as a share of the range, the loss grows in proportion to the error."""

    @model_validator(mode="after")
    def _range_ascends(self) -> Self:
        if not 0 < self.width < float("inf"):
            raise ValueError(f"low must be below high and both finite; they are {self.low:g} and {self.high:g}")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The target."""
        return (self.target,)

    @property
    def width(self) -> float:
        """Of the range, in the target's unit."""
        return self.high - self.low

    def scaled(self, target: float) -> float:
        """A target clipped to the range, as a share of it from `low`."""
        return (min(max(target, self.low), self.high) - self.low) / self.width

    def in_unit(self, shares: NDArray[np.floating] | Labels) -> NDArray[np.float64]:
        """Shares of the range in the target's unit."""
        found: NDArray[np.float64] = self.low + self.width * np.asarray(shares, np.float64)
        return found

    def as_array(self, labels: Sequence[Label]) -> Labels:
        """See `TaskSpec`; float64."""
        return np.array(labels, dtype=np.float64)

    def made_up(self, numbers: NDArray[np.int64]) -> Labels:
        """See `TaskSpec`; over the whole range."""
        return (numbers % 5) / 4

    @property
    def names(self) -> tuple[str, ...]:
        """The quarters of the range, the ends with what was clipped to them."""
        return tuple(f"{low:g} to {high:g}" for low, high in pairwise(self.in_unit(np.linspace(0, 1, 5))))

    def name_of(self, label: Label) -> str:
        """See `TaskSpec`."""
        return self.names[min(int(label * 4), 3)]


Task = Annotated[BinaryTask | MulticlassTask | RegressionTask, Field(discriminator="kind")]
"""The card's `[task]`."""
