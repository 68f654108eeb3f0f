"""The card's `[features]`: columns fused with the pooled text at the head, each bounded by public constants."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from fedprofile.common.config import Frozen


class ColumnFeature(Frozen):
    """A column that is fused with the pooled text."""

    name: str


class NumericFeature(ColumnFeature):
    """A numeric column, clipped to a public range and expanded on public knots.

    Without knots the value, scaled to [0, 1], is the one input. With knots it becomes one hat function (a linear
    spline's base) for `low`, each knot and `high`, so that a linear head can bend. On a `log` scale distances are
    counted as log(1 + (value - low) / unit). A missing value gives zeros.
    """

    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    unit: float = Field(default=1.0, gt=0)
    """For `log`: the distance from `low` that counts as small."""
    knots: tuple[float, ...] = ()
    """Strictly between `low` and `high`, ascending, in the column's own unit."""

    @model_validator(mode="after")
    def _knots_ascend(self) -> Self:
        ends = (self.low, *self.knots, self.high)
        if any(not left < right for left, right in pairwise(ends)):
            raise ValueError(f"low, knots and high must ascend; they are {', '.join(f'{end:g}' for end in ends)}")
        if len(self.knots) > 62:
            raise ValueError("at most 62 knots")
        return self

    @property
    def width(self) -> int:
        """How many inputs of the head it takes."""
        return len(self.knots) + 2 if self.knots else 1


class CategoricalFeature(ColumnFeature):
    """A categorical column with a public list of values, one input each; a value not listed gives zeros."""

    values: tuple[str, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) != len(values):
            raise ValueError("values must be distinct")
        return values

    @property
    def width(self) -> int:
        """How many inputs of the head it takes."""
        return len(self.values)


class VectorFeature(ColumnFeature):
    """A column that holds a vector: an image's, a sound's or an item's embedding, computed beforehand.

    It is bounded by public constants, and its inputs of the head lie between -1 and 1: either each value is clipped to
    `low` and `high`, which become -1 and 1, or a vector longer than `norm` is shortened to it, and all are divided by
    it. A missing vector gives zeros.
    """

    width: int = Field(ge=1, le=4096)
    """How many values each vector has, and how many inputs of the head it takes."""
    low: float | None = None
    high: float | None = None
    norm: float | None = Field(default=None, gt=0)
    """L2 norm."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) == (self.norm is None):
            raise ValueError("give either low and high, or norm")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


class CrossSpec(Frozen):
    """A numeric feature times a categorical one: the hat functions of the first, once for each value of the second.

    With it a linear head can learn that the same number means different things in different categories.
    """

    numeric: str
    categorical: str


class FeaturesSpec(Frozen):
    """The columns fused with the pooled text at the head, in this order: numeric, categorical, vectors, crosses."""

    numeric: tuple[NumericFeature, ...] = ()
    categorical: tuple[CategoricalFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()
    crosses: tuple[CrossSpec, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if len({feature.name for feature in self.all}) != len(self.all):
            raise ValueError("a feature is named twice")
        numeric, categorical = ({feature.name for feature in part} for part in (self.numeric, self.categorical))
        for cross in self.crosses:
            if cross.numeric not in numeric or cross.categorical not in categorical:
                raise ValueError(
                    f"cross of '{cross.numeric}' and '{cross.categorical}': name a numeric and a categorical feature"
                )
        return self

    @property
    def all(self) -> tuple[NumericFeature | CategoricalFeature | VectorFeature, ...]:
        """The columns' own features in the order of the head's inputs."""
        return (*self.numeric, *self.categorical, *self.vectors)

    @property
    def width(self) -> int:
        """How many inputs of the head all of them take."""
        widths = {feature.name: feature.width for feature in self.all}
        crossed = sum(widths[cross.numeric] * widths[cross.categorical] for cross in self.crosses)
        return sum(widths.values()) + crossed

    @property
    def columns(self) -> frozenset[str]:
        """Every column that they read."""
        return frozenset(feature.name for feature in self.all)
