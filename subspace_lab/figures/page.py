"""Where a figure is drawn: a new figure of a venue's width, or axes of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_lab.errors import UserError
from subspace_lab.figures.style import (
    COLUMN_WIDTH,
    LINE_HEIGHT,
    LINES,
    MARKERS,
    PALETTE,
    PaperFigure,
    broken,
    broken_labels,
    legend_below,
    legend_entries,
)

VENUES = {
    "acl": 3.03, "acl-two-columns": 6.30, "icml": 3.25, "icml-two-columns": 6.75,
    "iclr": 5.5, "iclr-half": 2.67, "neurips": 5.5, "neurips-half": 2.67,
}  # fmt: skip
"""Widths of a column in inches, by the venues' style files; half: two figures side by side."""
PANEL_WIDTH = 2.6  # inches; two panels stand side by side where both are as wide
TITLE_CHARACTER, SUBTITLE_CHARACTER = 0.059, 0.054  # of panels and figures, inches on average
AXIS_WIDTH = 0.45  # inches beside a panel
NAME_WIDTH = 0.058  # of a character at an axis, in inches, on average

GivenAxes = Axes | Sequence[Axes] | Mapping[str, Axes]


@dataclass
class Page:
    """Where and how a figure is drawn; after that, `figure` is the figure.

    Attributes:
        width: of a new figure, in inches.
        titled: whether a new figure has a title above its panels.
        axes: the user's own, which get panels without a title and legend of the figure: as many as
            there are panels, in order; or some panels by name.
        things: names of runs, configurations or methods that have colors, in this order; others
            follow as they come. With the same names a thing has the same color in all figures.
    """

    width: float = COLUMN_WIDTH
    titled: bool = True
    axes: GivenAxes | None = None
    things: Sequence[str] = ()
    figure: Figure = field(init=False)

    def __post_init__(self) -> None:
        self._places = {name: place for place, name in enumerate(dict.fromkeys(self.things))}

    def panels(
        self,
        names: Sequence[str],
        *,
        row_height: float = 1.3,
        panel_width: float = PANEL_WIDTH,
        share_x: bool = False,
    ) -> dict[str, Axes]:
        """Make the axes of the panels by name, or take those that were given.

        Names are unique. Sizes are in inches; `panel_width` is the least of panels that stand side
        by side. With `share_x` all panels have one horizontal axis, labeled in the lowest.

        Raises:
            UserError: if other axes were given than there are panels.
        """
        if self.axes is not None:
            return self._given(names)
        rows = -(-len(names) // max(1, int(self.width // panel_width)))
        columns = -(-len(names) // rows)
        self.figure = PaperFigure(figsize=(self.width, rows * row_height), layout="constrained")
        self._count, made = len(names), dict[str, Axes]()
        for place, name in enumerate(names):
            first = next(iter(made.values()), None) if share_x else None
            made[name] = self.figure.add_subplot(rows, columns, place + 1, sharex=first)
            if share_x and place + columns < len(names):
                made[name].tick_params(labelbottom=False)
        return made

    def _given(self, names: Sequence[str]) -> dict[str, Axes]:
        known = ", ".join(map(repr, names))
        if isinstance(self.axes, Mapping):
            if wrong := [name for name in self.axes if name not in names]:
                raise UserError(f"the figure has no panel {wrong[0]!r}: choose among {known}")
            given = dict(self.axes)
        else:
            axes = list(np.ravel(np.asarray(self.axes, dtype=object)))
            if len(axes) != len(names):
                raise UserError(
                    f"{len(axes)} axes were given for {len(names)} panels ({known}): give as many, "
                    "or a dictionary from names of panels to axes"
                )
            given = dict(zip(names, axes, strict=True))
        figure = next(iter(given.values())).get_figure(root=True)
        assert figure is not None
        self.figure = figure
        return given

    @property
    def columns(self) -> int:
        """The number of panels that stand side by side in a new figure."""
        spec = self.figure.axes[0].get_subplotspec()
        return 1 if spec is None else spec.get_gridspec().ncols

    def set_title(self, axes: Axes, text: str, *, names: float = 0.0) -> None:
        """Title a panel, in lines that fit it beside names of a width at its axis, in inches."""
        width = width_of(axes) - names
        axes.set_title(broken(text, max(12, int(width / TITLE_CHARACTER))))

    def title(self, text: str) -> None:
        """Write the title above the panels of a new figure, in lines that fit it."""
        if self.titled and self.axes is None:
            width = int(self.width / SUBTITLE_CHARACTER)
            lines = "\n".join(broken(line, width) for line in text.splitlines())
            self.figure.suptitle(lines, fontsize="medium")
            if self.columns == self._count:  # a single row, which would lose most of its height
                added = LINE_HEIGHT * (lines.count("\n") + 1)
                self.figure.set_figheight(self.figure.get_figheight() + added)

    def legend(self, panels: Mapping[str, Axes], *, columns: int = 2) -> None:
        """Draw the legend of all panels under a new figure."""
        if self.axes is None and not self._legend_in_cell(panels):
            legend_below(self.figure, panels.values(), columns=columns)

    def _legend_in_cell(self, panels: Mapping[str, Axes]) -> bool:
        """Draw the legend where the grid has no panel, if it fits there."""
        axes = list(panels.values())
        spec = axes[-1].get_subplotspec()
        assert spec is not None
        rows, columns = spec.get_gridspec().get_geometry()
        entries = legend_entries(axes)
        labels = broken_labels(entries, self.width / columns)
        lines = len(labels) + sum(label.count("\n") for label in labels)
        height = self.figure.get_figheight() / rows
        if rows * columns == self._count or not lines or LINE_HEIGHT * lines > height:
            return False
        cell = self.figure.add_subplot(rows, columns, rows * columns)
        cell.set_axis_off()
        handles = [handle for _, handle in entries]
        cell.legend(handles=handles, labels=labels, loc="center", labelspacing=0.3)
        return True

    def place(self, thing: str) -> int:
        """Give the place of a run, configuration or method among those that have colors."""
        return self._places.setdefault(thing, len(self._places))

    @property
    def several(self) -> bool:
        """Tell whether colors tell several things apart."""
        return len(self._places) > 1

    def style(self, thing: str) -> dict[str, Any]:
        """Give the color and the marker of a run, configuration or method."""
        place = self.place(thing)
        return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}

    def line(self, thing: str) -> Any:
        """Give the dashes of a thing that has one curve in each panel."""
        return LINES[self.place(thing) % len(LINES)]


def width_of(axes: Axes) -> float:
    """Estimate the width of a panel before it is laid out, in inches."""
    figure, spec = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    if spec is None:
        return float(figure.get_figwidth() * axes.get_position().width)
    return float(figure.get_figwidth() / spec.get_gridspec().ncols - AXIS_WIDTH)


def slant_names(axes: Axes) -> None:
    """Turn the names at the horizontal axis if the longest does not fit between two of them."""
    labels = axes.get_xticklabels()
    longest = max((len(label.get_text()) for label in labels), default=0)
    if NAME_WIDTH * (longest + 1) * len(labels) > width_of(axes):
        for label in labels:
            label.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")
