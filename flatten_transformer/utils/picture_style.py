"""One style for every picture: colours that colour-blind eyes tell apart, resolution, fonts, grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
DPI = 150  # pixels per inch
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, dark ones first
DASHES = ("-", "--", ":")  # of the lines once all colours are taken
MARKERS = "osD^vP*"
PALE = "#666666"  # of what is not data

# Okabe and Ito, "Color Universal Design", 2008, without black, ordered for contrast between neighbours.
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_RC: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "savefig.facecolor": "white",
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style to figures of matplotlib."""
    from matplotlib import rc_context

    with rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of a line by its number; 21 differ.

    Example:
        >>> line_style(0) == line_style(7), line_style(7)["linestyle"]
        (False, '--')
    """
    return {"color": LINES[number % len(LINES)], "linestyle": DASHES[number // len(LINES) % len(DASHES)]}


def add_grid(axis: Axes, across: Literal["both", "x", "y"] = "both") -> None:
    """Draw pale lines behind what an axis shows, at the ticks of both directions or of one."""
    axis.grid(axis=across, color="#ececec", lw=0.8)
    axis.set_axisbelow(True)


def legend_below(axis: Axes, columns: int = 2) -> None:
    """Add a legend below an axis and its label, where it covers nothing; none if nothing is labelled.

    Args:
        axis: Axis with labelled lines.
        columns: Most columns.
    """
    if (count := len(axis.get_legend_handles_labels()[0])) > 0:
        height = float(axis.get_figure(root=True).get_figheight()) * 72 * 0.75  # type: ignore[union-attr]  # in points
        place = (0.5, -46 / height)  # below ticks and label: 46 points, whatever the height
        axis.legend(loc="upper center", bbox_to_anchor=place, ncols=min(columns, count), frameon=False, fontsize=8.5)
