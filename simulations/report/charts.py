"""The kinds of figures: numbers with intervals over epsilon, bars, dots, and how people are spread."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from fedprofile.simulations.report.drawing import HATCHES, INK, MARKERS, MUTED, PAPER, SERIES, Drawing, drawing
from fedprofile.simulations.report.estimates import Estimate
from fedprofile.simulations.report.results import SUPPRESSED

ROW, BAR, DOT, FRAME = 9.0, 12.0, 8.5, 56.0
"""Points: between categories, for a bar, for a dot, and for the axis."""
TEXT_LINE = 14.0
"""Points of a line of text."""
LETTERS = 17
"""Of each of the two lines of a category's name; the table beside the figure has the whole."""
HIDDEN = "not shown"
"""Instead of a count."""
CATEGORIES = 30
"""Of one figure; the table has all."""


@dataclass(frozen=True)
class Series:
    """Numbers that belong together.

    Args:
        name: In the legend.
        estimates: One for each category; None where it is suppressed.
    """

    name: str
    estimates: Sequence[Estimate | None]


@dataclass(frozen=True)
class Drawn:
    """Where a figure stands and what it says.

    Args:
        key: Unique on the page.
        description: The text alternative.
        axis: What the numbers are.
    """

    key: str
    description: str
    axis: str


def over_categories(drawn: Drawn, categories: Sequence[str], series: Sequence[Series], below: str) -> Markup:
    """Points joined by lines, from left to right.

    Args:
        drawn: See there.
        categories: Along the horizontal axis, evenly spaced.
        series: One line each.
        below: What the categories are.
    """
    with drawing(180 + TEXT_LINE * math.ceil(len(series) / 2)) as figure:
        for number, one in enumerate(series):
            shift = 0.12 * (number - (len(series) - 1) / 2)
            places = [place + shift for place in range(len(categories))]
            _points(figure, places, one, number, upright=True)
        figure.axes.set_xticks(range(len(categories)), [_short(name) for name in categories])
        figure.axes.set_xlim(-0.5, len(categories) - 0.5)
        figure.axes.set_xlabel(below)
        figure.axes.set_ylabel(drawn.axis)
        figure.axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        figure.axes.grid(axis="y")
        figure.legend()
        return figure.svg(drawn.key, drawn.description)


def bars(drawn: Drawn, categories: Sequence[str], series: Sequence[Series]) -> Markup:
    """A bar with its interval for each series of each category."""
    with _rows(categories, series, BAR) as figure:
        for number, one in enumerate(series):
            places = _places(len(categories), len(series), number)
            known = [(place, found) for place, found in zip(places, one.estimates, strict=True) if found]
            figure.axes.barh(
                [place for place, _ in known],
                [found.value for _, found in known],
                height=0.8 / len(series),
                color=SERIES[number % len(SERIES)],
                hatch=HATCHES[number % len(HATCHES)],
                hatchcolor=PAPER,
                label=one.name,
                xerr=_ends([found for _, found in known]),
                error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 2},
            )
        _absent(figure, series)
        _finish(figure, drawn, categories)
        return figure.svg(drawn.key, drawn.description)


def dots(
    drawn: Drawn, categories: Sequence[str], series: Sequence[Series], line: tuple[str, float] | None = None
) -> Markup:
    """A dot with its interval for each series of each category.

    Args:
        drawn: See there.
        categories: From top to bottom.
        series: One colour and marker each.
        line: A name and a value at which a line is drawn; an empty name keeps it out of the legend.
    """
    with _rows(categories, series, DOT) as figure:
        if line is not None:
            figure.axes.axvline(line[1], color=INK, linewidth=1.2, linestyle="--", label=line[0] or "_")
        for number, one in enumerate(series):
            _points(figure, _places(len(categories), len(series), number), one, number, upright=False)
        _absent(figure, series)
        _finish(figure, drawn, categories)
        return figure.svg(drawn.key, drawn.description)


def stacked(drawn: Drawn, categories: Sequence[str], parts: Mapping[str, Sequence[int | None]]) -> Markup:
    """Counts side by side in one bar for each category; what is not to be shown is left out."""
    with drawing(_height(categories, ROW + DOT, len(parts))) as figure:
        places = range(len(categories))
        left = np.zeros(len(categories))
        for number, (name, counts) in enumerate(parts.items()):
            shown = np.array([count or 0 for count in counts], dtype=np.float64)
            figure.axes.barh(
                places,
                shown,
                left=left,
                height=0.8,
                color=SERIES[number % len(SERIES)],
                hatch=HATCHES[number % len(HATCHES)],
                hatchcolor=PAPER,
                edgecolor=PAPER,
                label=_short(name),
            )
            left += shown
        for place in np.flatnonzero(left == 0):
            _remark(figure, int(place), HIDDEN)
        _finish(figure, drawn, categories)
        return figure.svg(drawn.key, drawn.description)


def _rows(categories: Sequence[str], series: Sequence[Series], each: float) -> AbstractContextManager[Drawing]:
    return drawing(_height(categories, ROW + each * len(series), len(series)))


def _height(categories: Sequence[str], row: float, series: int) -> float:
    lines = max(_short(name).count("\n") + 1 for name in categories)
    return FRAME + len(categories) * max(row, TEXT_LINE * lines + 2) + TEXT_LINE * math.ceil(series / 2)


def _places(categories: int, series: int, number: int) -> list[float]:
    """Of one series: inside each category, from top to bottom."""
    return [category + 0.8 * ((number + 0.5) / series - 0.5) for category in range(categories)]


def _points(figure: Drawing, places: Sequence[float], one: Series, number: int, *, upright: bool) -> None:
    known = [(place, found) for place, found in zip(places, one.estimates, strict=True) if found]
    where, values = [place for place, _ in known], [found.value for _, found in known]
    ends = _ends([found for _, found in known])
    figure.axes.errorbar(
        where if upright else values,
        values if upright else where,
        yerr=ends if upright else None,
        xerr=None if upright else ends,
        color=SERIES[number % len(SERIES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        linestyle="-" if upright else "none",
        linewidth=1.2,
        elinewidth=1.4,
        capsize=2,
        label=one.name,
    )


def _ends(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far the interval goes to both sides; NaN, which is not drawn, where there is none."""
    return [
        [max(0.0, found.value - found.low) if found.has_interval else math.nan for found in estimates],
        [max(0.0, found.high - found.value) if found.has_interval else math.nan for found in estimates],
    ]


def _absent(figure: Drawing, series: Sequence[Series]) -> None:
    """Say of a category of which there is no number why."""
    for place, found in enumerate(zip(*(one.estimates for one in series), strict=True)):
        if not any(found):
            _remark(figure, place, SUPPRESSED)


def _remark(figure: Drawing, place: int, text: str) -> None:
    figure.axes.text(0.02, place, text, color=MUTED, va="center", transform=figure.axes.get_yaxis_transform())


def _finish(figure: Drawing, drawn: Drawn, categories: Sequence[str]) -> None:
    figure.axes.set_yticks(range(len(categories)), [_short(name) for name in categories])
    figure.axes.set_ylim(len(categories) - 0.4, -0.6)
    figure.axes.tick_params(axis="y", length=0)
    figure.axes.set_xlabel(drawn.axis)
    figure.axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    figure.axes.grid(axis="x")
    figure.axes.spines["left"].set_color(MUTED)
    figure.legend()


def _short(name: str) -> str:
    return "\n".join(textwrap.wrap(name, LETTERS, max_lines=2, placeholder="…")) or "–"
