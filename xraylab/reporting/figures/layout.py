"""Labels that do not lie on each other, and grids of panels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4  # of panels


def spaced(
    figure: Figure, rows: int, columns: int, margins: tuple[float, float, float, float], across: float = 0.0, down: float = 0.0,
    **options: Any
) -> list[Axes]:  # fmt: skip
    """Axes of a figure with margins and distances in inches; constrained layout takes longer than all the drawing.

    Args:
        margins: left, right, bottom, top.
        across, down: between columns and rows.
        **options: of ``Figure.subplots``.

    Returns:
        Row by row.
    """
    width, height = figure.get_size_inches()
    left, right, bottom, top = margins
    wide = (width - left - right - (columns - 1) * across) / columns
    tall = (height - bottom - top - (rows - 1) * down) / rows
    places = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height,
              "wspace": across / wide, "hspace": down / tall}  # fmt: skip
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=places, **options).ravel())


def panel_grid(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of square panels over [0, 1], four a row, with room for titles of three lines; those left over are off."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, number)
    rows = math.ceil(number / columns)
    width, height = max(2.75 * columns, 5.5), 3.05 * rows + 0.9
    figure = Figure(figsize=(width, height))
    # titles and labels of a figure lie at a share of its size
    grid = spaced(figure, rows, columns, (0.02 * width + 0.45, 0.1, 0.01 * height + 0.75, 0.02 * height + 0.8), 0.2, 0.75,
                  sharex=True, sharey=True)  # fmt: skip
    for axes in grid[:number]:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelsize=8)
    for axes in grid[number - columns : number]:
        axes.tick_params(labelbottom=True)
    for axes in grid[number:]:
        axes.set_axis_off()
    return figure, grid
