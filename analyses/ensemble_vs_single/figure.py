"""The figure of mask ensembles, and the table of the numbers that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses import kit
from subspace_lab.figures.page import slant_names
from subspace_lab.figures.style import PREDICTION
from subspace_lab.stats.intervals import accuracy_interval

COSTS = ("single", "geometric", "arithmetic")
SHOWN = ("base", "full", *COSTS)
SAMPLES = ["run", "examples", "split", "masks", "dtype"]


def scale_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the predictors that differ in the inference scale only, in its order."""
    curve = rows[rows["predictor"].isin(["base", "scaled", "full"])]
    return curve.dropna(subset="scale").sort_values("scale")


def figure_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn of each run's last step, a row for each point.

    Columns: `run`, `panel` (loss over scale; cost: loss above the full model's; accuracy),
    `predictor`, `kind` (measured: the mean over masks; one mask; predicted: by theory), `scale`,
    `value`, `low` and `high` (Wilson's 95 % interval of an accuracy), `examples`, `split`, `masks`,
    `dtype`.
    """
    parts = []
    for _, rows in kit.at_last_step(table).groupby("run", sort=False):
        samples: dict[str, Any] = {name: rows[name].iloc[0] for name in SAMPLES}
        samples["masks"] = rows["masks"].max()
        parts.append(pd.DataFrame(_points(rows)).assign(**samples))
    return pd.concat(parts, ignore_index=True)


def _points(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    means = rows.groupby("predictor")[["loss", "accuracy", "jensen_gap"]].mean()
    full = means["loss"]["full"]
    examples = int(rows["examples"].iloc[0])
    for row in scale_curve(rows).to_dict("records"):
        yield _point("loss", row["predictor"], row["loss"], scale=row["scale"])
    yield _point("loss", "full", np.nan, "predicted", scale=rows["predicted_scale"].iloc[0])
    for loss in rows.loc[rows["predictor"] == "single", "loss"]:
        yield _point("cost", "single", loss - full, "one mask")
    for predictor in COSTS:
        yield _point("cost", predictor, means["loss"][predictor] - full)
    identity = means["loss"]["geometric"] + means["jensen_gap"]["geometric"] - full
    yield _point("cost", "single", identity, "predicted")
    for predictor in SHOWN:
        accuracy = means["accuracy"][predictor]
        interval = accuracy_interval(round(accuracy * examples), examples)
        yield _point("accuracy", predictor, accuracy, low=interval.low, high=interval.high)


def _point(
    panel: str, predictor: object, value: float, kind: str = "measured", **more: object
) -> dict[str, Any]:
    return {"panel": panel, "predictor": predictor, "kind": kind, "value": value, **more}


def draw(points: pd.DataFrame, page: kit.Page) -> None:
    """Draw loss over inference scale, and the costs and accuracies of masks and ensembles."""
    panels = {"loss": _draw_loss, "cost": _draw_cost, "accuracy": _draw_accuracy}
    axes = page.panels(list(panels), row_height=1.4)
    for panel, axis in axes.items():
        panels[panel](axis, points[points["panel"] == panel], page)
    count, dtype = int(points["masks"].max()), points["dtype"].iloc[0]
    note = f"{kit.examples_note(points)}, {count} mask{'s' * (count != 1)}, {dtype}"
    page.title(f"Mask ensembles\n{note}; bars: 95 % (Wilson)")
    page.legend(axes)


def beside(points: pd.DataFrame, page: kit.Page) -> Iterator[tuple[str, dict[str, Any], float]]:
    """List the runs with their styles and their places beside each other, in [-0.35, 0.35]."""
    runs = list(dict.fromkeys(points["run"]))
    for i, run in enumerate(runs):
        yield run, page.style(run), 0.7 * ((i + 0.5) / len(runs) - 0.5)


def _draw_loss(axis: Axes, points: pd.DataFrame, page: kit.Page) -> None:
    """Draw loss over inference scale, and a tick at the scale that theory predicts.

    A prediction outside the scales that were scanned is an arrow at the edge.
    """
    measured, predicted = (points[points["kind"] == kind] for kind in ("measured", "predicted"))
    first, last = measured["scale"].min(), measured["scale"].max()
    margin, outside = 0.05 * (last - first), False
    axis.set_xlim(first - margin, last + margin)
    for place, (run, style, _) in enumerate(beside(points, page)):
        curve = measured[measured["run"] == run]
        axis.plot(curve["scale"], curve["value"], label=run, linestyle=page.line(run), **style)
        _draw_ends(axis, curve["scale"], curve, style["color"])
        for scale in predicted.loc[predicted["run"] == run, "scale"].dropna():
            if first <= scale <= last:
                axis.axvline(scale, ymax=0.12, color=style["color"], linestyle=(0, (1, 1)))
            else:
                outside, edge = True, 0.99 if scale > last else 0.01
                arrow = {"color": style["color"], "marker": ">" if scale > last else "<"}
                height = 0.06 + 0.1 * place
                axis.plot(edge, height, linestyle="", transform=axis.transAxes, **arrow)
    if predicted["scale"].between(first, last).any():
        axis.plot([], [], label="predicted best scale c* (T9)", **PREDICTION)
    if outside:
        arrow = {"color": "0.35", "marker": ">", "linestyle": ""}
        axis.plot([], [], label="predicted c* outside the scan", **arrow)
    axis.axvline(1.0, color="0.8", linewidth=0.6, zorder=0)
    axis.set(xlabel="inference scale c of the update", ylabel="loss (nats/token)")


def _draw_cost(axis: Axes, points: pd.DataFrame, page: kit.Page) -> None:
    """Draw each mask pale, the means in full color, and the Jensen identity as a bar.

    Single masks far from the others are drawn at the edge, so that they do not flatten the rest.
    """
    low, high = _limits(points)
    for run, style, shift in beside(points, page):
        rows = points[points["run"] == run]
        x = rows["predictor"].map(COSTS.index) + shift
        masks, means, expected = (rows["kind"] == k for k in ("one mask", "measured", "predicted"))
        for chosen, alpha in ((masks, 0.35), (means, 1.0)):
            axis.plot(x[chosen], rows["value"][chosen], linestyle="", alpha=alpha, **style)
        _draw_ends(axis, x, rows, style["color"])
        bar: dict[str, Any] = {"color": "0.2", "linewidth": 1.5, "zorder": 3}
        axis.hlines(rows["value"][expected], x[expected] - 0.08, x[expected] + 0.08, **bar)
        costs = rows["value"][masks]
        for beyond, edge, marker in ((costs > high, high, "^"), (costs < low, low, "v")):
            if beyond.any():
                hollow = {"color": style["color"], "marker": marker, "fillstyle": "none"}
                place = COSTS.index("single") + shift
                axis.plot(place, edge, linestyle="", clip_on=False, **hollow)
    if not points["value"].dropna().between(low, high).all():
        hollow = {"color": "0.35", "marker": "^", "fillstyle": "none", "linestyle": ""}
        axis.plot([], [], label="a mask beyond the axis", **hollow)
    axis.plot([], [], color="0.2", linewidth=1.5, label="geometric + Jensen gap (T12)")
    axis.axhline(0.0, color="0.8", linewidth=0.6, zorder=0)
    axis.set(ylabel="loss − full\n(nats/token)", xlim=(-0.5, len(COSTS) - 0.5), ylim=(low, high))
    axis.set_xticks(range(len(COSTS)), COSTS)


def _limits(points: pd.DataFrame) -> tuple[float, float]:
    """Choose the ends of the axis of costs: means, and masks within Tukey's outer fences."""
    masks = points.loc[points["kind"] == "one mask", "value"].dropna()
    low, high = masks.quantile([0.25, 0.75])
    inside = masks[masks.between(low - 3 * (high - low), high + 3 * (high - low))]
    others = points.loc[points["kind"] != "one mask", "value"]
    values = pd.concat([others, inside, pd.Series([0.0])])
    room = 0.3 * (values.max() - values.min())  # a third as far again for wide intervals
    ends = points.loc[points["kind"] == "measured", ["low", "high"]].stack().dropna()
    values = pd.concat([values, ends.clip(values.min() - room, values.max() + room)])
    margin = 0.06 * (values.max() - values.min()) or 1.0
    return float(values.min() - margin), float(values.max() + margin)


def _draw_ends(axis: Axes, x: pd.Series[float], points: pd.DataFrame, color: str) -> None:
    """Draw the intervals of the points that have one."""
    known = points.dropna(subset=["low", "high"])
    if not known.empty:
        axis.vlines(x[known.index], known["low"], known["high"], color=color, linewidth=0.7)


def _draw_accuracy(axis: Axes, points: pd.DataFrame, page: kit.Page) -> None:
    for run, style, shift in beside(points, page):
        rows = points[points["run"] == run]
        ends = rows[["low", "high"]].sub(rows["value"], axis=0).abs().to_numpy().T
        x = rows["predictor"].map(SHOWN.index) + shift
        axis.errorbar(x, rows["value"], yerr=ends, linewidth=0.7, linestyle="", **style)
    axis.set(ylabel="exact match", ylim=(0, 1), xlim=(-0.5, len(SHOWN) - 0.5))
    axis.set_xticks(range(len(SHOWN)), SHOWN)
    slant_names(axis)
