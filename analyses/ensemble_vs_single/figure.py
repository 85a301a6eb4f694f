"""The figure of mask ensembles, and the table of the numbers that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.figures.style import MARKERS, PALETTE, PREDICTION, legend_below, new_figure
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
    last = table[table["step"] == table.groupby("run")["step"].transform("max")]
    parts = []
    for _, rows in last.groupby("run", sort=False):
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


def draw(points: pd.DataFrame) -> Figure:
    """Draw loss over inference scale, and the costs and accuracies of masks and ensembles."""
    figure, axes = new_figure(3, row_height=1.35, share_x=False)
    loss, cost, accuracy = axes[:, 0]
    runs = list(dict.fromkeys(points["run"]))
    for i, run in enumerate(runs):
        style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        shift = 0.7 * ((i + 0.5) / len(runs) - 0.5)
        of_run = points[points["run"] == run]
        _draw_loss(loss, of_run[of_run["panel"] == "loss"], style, run)
        _draw_cost(cost, of_run[of_run["panel"] == "cost"], style, shift)
        _draw_accuracy(accuracy, of_run[of_run["panel"] == "accuracy"], style, shift)
    if points.loc[points["kind"] == "predicted", "scale"].notna().any():
        loss.plot([], [], label="predicted best scale c* (T9)", **PREDICTION)
    cost.plot([], [], color="0.2", linewidth=1.5, label="geometric + Jensen gap (T12)")
    loss.axvline(1.0, color="0.8", linewidth=0.6, zorder=0)
    loss.set(xlabel="inference scale c of the update", ylabel="loss (nats/token)")
    cost.axhline(0.0, color="0.8", linewidth=0.6, zorder=0)
    cost.set(ylabel="loss − full\n(nats/token)", xlim=(-0.5, len(COSTS) - 0.5))
    cost.set_xticks(range(len(COSTS)), COSTS)
    accuracy.set(ylabel="exact match", ylim=(0, 1), xlim=(-0.5, len(SHOWN) - 0.5))
    accuracy.set_xticks(range(len(SHOWN)), SHOWN)
    count, dtype = int(points["masks"].max()), points["dtype"].iloc[0]
    note = f"{kit.examples_note(points)}, {count} mask{'s' * (count != 1)}, {dtype}"
    figure.suptitle(f"Mask ensembles\n{note}; bars: 95 % (Wilson)", fontsize="medium")
    legend_below(figure, axes[:2, 0])
    return figure


def _draw_loss(axis: Axes, points: pd.DataFrame, style: dict[str, Any], run: str) -> None:
    """Draw loss over inference scale, and a tick at the scale that theory predicts."""
    curve = points[points["kind"] == "measured"]
    axis.plot(curve["scale"], curve["value"], label=run, **style)
    for predicted in points.loc[points["kind"] == "predicted", "scale"].dropna():
        axis.axvline(predicted, ymax=0.12, color=style["color"], linestyle=(0, (1, 1)))


def _draw_cost(axis: Axes, points: pd.DataFrame, style: dict[str, Any], shift: float) -> None:
    """Draw each mask pale, the means in full color, and the Jensen identity as a bar."""
    x = points["predictor"].map(COSTS.index) + shift
    for kind, alpha in (("one mask", 0.35), ("measured", 1.0)):
        of_kind = points["kind"] == kind
        axis.plot(x[of_kind], points["value"][of_kind], linestyle="", alpha=alpha, **style)
    expected = points["kind"] == "predicted"
    axis.hlines(
        points["value"][expected],
        x[expected] - 0.08,
        x[expected] + 0.08,
        color="0.2",
        linewidth=1.5,
        zorder=3,
    )


def _draw_accuracy(axis: Axes, points: pd.DataFrame, style: dict[str, Any], shift: float) -> None:
    ends = points[["low", "high"]].sub(points["value"], axis=0).abs().to_numpy().T
    x = points["predictor"].map(SHOWN.index) + shift
    axis.errorbar(x, points["value"], yerr=ends, linewidth=0.7, linestyle="", **style)
