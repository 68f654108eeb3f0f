"""What is predicted: the kinds of task, with their labels as numbers.

    binary       one of two labels
    multiclass   one of several labels
    multilabel   any number of several labels
    regression   a number within a public range
    ranking      which candidate of a public catalogue is chosen next

A label is a number that is never negative, so that -1 stands for one that is not known: an index in `labels`, a set of
labels as bits, or the target clipped to the card's public range and scaled to [0, 1]. A ranking's record is several
rows, one for each candidate that stands beside the chosen one, and a row's label is 1 or 0: see
`fedprofile.common.candidates`.
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

LIKELY = 0.5
"""The probability from which a record is said to have a label that excludes no other."""

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
        """What scores are given of, in order."""
        raise NotImplementedError

    @property
    def logit_names(self) -> tuple[str, ...]:
        """What the head's outputs are called, in order: as `outputs`, but for a ranking."""
        return self.outputs

    @property
    def logits(self) -> int:
        """How many outputs the head has."""
        return len(self.logit_names)

    @property
    def rows_per_record(self) -> int:
        """How many rows of `EncodedRecords` one labelled row of the tenant is, which stand together."""
        return 1

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


class MultilabelTask(LabelsTask):
    """Any number of several labels, also none.

    A record's label is the sum of 2**i over its labels i, so that a set of labels is one number like every label.
    """

    kind: Literal["multilabel"]
    labels: tuple[str, ...] = Field(min_length=2, max_length=62)
    """In order; as many as fit into a signed 64-bit number."""
    separator: str = Field(default=";", min_length=1, max_length=1)
    """Between the labels in one cell of text."""

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> Self:
        wrong = [label for label in self.labels if self.separator in label or label.strip() != label or not label]
        if wrong:
            raise ValueError(f"label '{wrong[0]}' is empty, has spaces around it, or holds the separator")
        return self

    def truths(self, labels: Labels) -> NDArray[np.bool_]:
        """Which labels each record has.

        Args:
            labels: Known ones, [n].

        Returns:
            [n, labels].
        """
        found: NDArray[np.bool_] = (labels.astype(np.int64)[:, None] >> np.arange(len(self.labels))) & 1 == 1
        return found

    def made_up(self, numbers: NDArray[np.int64]) -> Labels:
        """See `TaskSpec`; sets of every size."""
        sets: Labels = numbers % 2 ** len(self.labels)
        return sets

    def shares(self, known: Labels, records: int) -> dict[str, float]:
        """See `TaskSpec`; a record counts for each of its labels."""
        counts = self.truths(known).sum(axis=0)
        return {label: float(count) / max(1, records) for label, count in zip(self.labels, counts, strict=True)}

    def name_of(self, label: Label) -> str:
        """See `TaskSpec`; the labels as one text."""
        had = self.truths(np.array([label]))[0]
        return self.separator.join(name for name, has in zip(self.labels, had, strict=True) if has)


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


class RankingTask(TaskSpec):
    """Which candidate is chosen next.

    The catalogue is on the card: public, the same for every tenant, and no part of anybody's data.
    """

    kind: Literal["ranking"]
    candidates: tuple[str, ...] = Field(min_length=2)
    """The text of each; a labelled row's cell holds the one that was chosen."""
    negatives: int = Field(default=9, ge=1, le=99)
    """How many others stand beside each chosen one in training and in the table, drawn uniformly from the catalogue."""
    cutoff: int = Field(default=3, ge=1)
    """k of the hit rate and of the normalised discounted cumulative gain."""

    @model_validator(mode="after")
    def _candidates_can_be_drawn(self) -> Self:
        if len(set(self.candidates)) != len(self.candidates) or "" in self.candidates:
            raise ValueError("candidates must be distinct and not empty")
        if spaced := [name for name in self.candidates if name.strip() != name]:
            raise ValueError(f"candidate '{spaced[0]}' has white space around it, which cells are read without")
        if self.negatives >= len(self.candidates):
            raise ValueError(f"negatives={self.negatives} must be fewer than the {len(self.candidates)} candidates")
        if self.cutoff > self.negatives:
            raise ValueError(f"cutoff={self.cutoff} must be at most negatives={self.negatives}, or every rank is a hit")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The candidates."""
        return self.candidates

    @property
    def logit_names(self) -> tuple[str, ...]:
        """One: whether this candidate is the chosen one."""
        return ("chosen",)

    @property
    def rows_per_record(self) -> int:
        """The chosen candidate and the others beside it."""
        return 1 + self.negatives

    def made_up(self, numbers: NDArray[np.int64]) -> Labels:
        """See `TaskSpec`; one chosen candidate in each record."""
        chosen: Labels = (numbers % self.rows_per_record == 0).astype(np.int64)
        return chosen

    def shares(self, known: Labels, records: int) -> dict[str, float]:
        """See `TaskSpec`; nothing, for there are as many chosen candidates in any data."""
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of a row."""
        return ("drawn", "chosen")


Task = Annotated[
    BinaryTask | MulticlassTask | MultilabelTask | RegressionTask | RankingTask, Field(discriminator="kind")
]
"""The card's `[task]`."""
