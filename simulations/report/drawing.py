"""Matplotlib figures as inline SVG that takes the colours and the font of the page it stands in.

Every colour is drawn as a stand-in and becomes a CSS variable, so that light, dark and print are the page's. Text stays
text. Figures are drawn narrow enough for a phone, where nothing is made much smaller.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

WIDTH = 340
"""Points."""
INK, MUTED, RULE, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")
"""With the colours, the same in every figure: none is told by its colour alone."""

HANDLE, LINE = 6, 56
"""Letters: as wide as what stands before a name in the legend, and as the figure."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    # Of whatever is not given a colour.
    "axes.prop_cycle": cycler(color=[INK]),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedprofile",
    # A group may be called $x$.
    "text.parse_math": False,
}


class Drawing:
    """One figure while it is drawn.

    Args:
        canvas: The whole.
        axes: The only ones.
    """

    def __init__(self, canvas: Canvas, axes: Axes) -> None:
        self.canvas, self.axes = canvas, axes

    def legend(self) -> None:
        """Above the axes, where there is anything to tell apart; in one line where it fits."""
        handles, names = self.axes.get_legend_handles_labels()
        if len(names) > 1:
            columns = len(names) if sum(len(name) + HANDLE for name in names) <= LINE else 2
            self.canvas.legend(
                handles, names, loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2
            )

    def svg(self, key: str, description: str) -> Markup:
        """The picture.

        Args:
            key: Unique on the page; begins every id.
            description: The text alternative.

        Returns:
            An `svg` element with the same bytes for the same drawing.
        """
        written = io.BytesIO()
        with warnings.catch_warnings():
            # The page's font draws the text; the one that is measured here need not have every letter.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.canvas.savefig(written, format="svg", metadata={"Date": None})
        return _inline(written.getvalue(), key, description)


@contextmanager
def drawing(height: float) -> Iterator[Drawing]:
    """Draw a figure.

    Args:
        height: Points.

    Yields:
        With the report's style, until the end of the block.
    """
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(canvas)
        yield Drawing(canvas, canvas.add_subplot())


def _inline(document: bytes, key: str, description: str) -> Markup:
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if _plain(child.tag) in ("metadata", "style"):
                parent.remove(child)
    referred = set(re.findall(rb'(?:url\(|href=")#([^)"]+)', document))
    names = {name.decode() for name in referred}
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.attrib = {
            _plain(name): _attribute(_plain(name), value, key)
            for name, value in element.attrib.items()
            if _plain(name) != "id" or value in names
        }
        element.tail = None
        if element.tag != "text" and element.tag != "tspan":
            element.text = None
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": description,
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain(name: str) -> str:
    """Without the namespace: HTML knows `svg` by itself."""
    return name.rpartition("}")[2]


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return f"#{key}-{value[1:]}"
    value = value.replace("url(#", f"url(#{key}-")
    if name in ("style", "fill", "stroke"):
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var({variable})")
        # The page's font family.
        value = re.sub(r"font: ([0-9.]+px)[^;]*", r"font-size: \1", value)
        value = re.sub(r"font-family:[^;]*;? ?", "", value)
    return value
