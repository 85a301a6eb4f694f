"""Figures of experiments, drawn from their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.comparisons import AT, PRIMARY
from experiments.design import Design
from subspace_lab.figures.style import MARKERS, PALETTE, legend_below, new_figure
from subspace_lab.stats.intervals import mean_interval

WORDS = {"own": "each at its own rate", "equal": "at the baseline's rate"}
STYLES: dict[str, dict[str, Any]] = {
    "own": {"marker": "o", "color": PALETTE[0]},
    "equal": {"marker": "s", "color": PALETTE[1], "markerfacecolor": "white"},
}
PREDICTOR_NAMES = {
    "arithmetic": "arithmetic mean of 16 masks",
    "geometric": "geometric mean of 16 masks",
    "singles": "single masks, mean",
}
ROW = 0.17  # inches for an arm
RANK_STYLES: dict[str, dict[str, Any]] = {
    "single_entropy": {"label": "of single runs", "marker": "o", "color": PALETTE[0]},
    "mean_entropy": {
        "label": "of the mean over mask seeds",
        "marker": "s",
        "color": PALETTE[1],
        "markerfacecolor": "white",
    },
    "crossed_entropy": {"label": "of that mean, crossed", "marker": "^", "color": PALETTE[2]},
    "planted_entropy": {
        "label": "crossed, were the mean LoRA's",
        "marker": "D",
        "color": PALETTE[2],
        "markerfacecolor": "white",
    },
}


def draw_experiment(design: Design, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw an experiment's figures, by kind.

    Args:
        design: the experiment.
        tables: of `python -m experiments`, by kind.
    """
    if design.measures == "inference":
        return {"inference": draw_inference(tables["inference-differences"])}
    if "ranks" in tables:
        return {"ranks": draw_ranks(tables["ranks"])}
    rows = tables["differences"]
    rows = rows[(rows["outcome"] == PRIMARY) & (rows["against"] == design.baseline)]
    if design.slope:
        return {"differences": draw_grid(rows[rows["arm"] == design.primary[0][0]], design)}
    title = "Test loss at the validated temperature"
    return {"differences": draw_differences(rows, title=title, unit="nats per token")}


def draw_differences(rows: pd.DataFrame, *, title: str, unit: str, scale: float = 1.0) -> Figure:
    """Draw one outcome's differences to the baseline, a panel for each regime.

    Args:
        rows: of `comparisons.compare`, of one outcome and one arm compared with.
        title: of the figure.
        unit: of the differences after scaling.
        scale: what they are multiplied by.
    """
    regimes = list(dict.fromkeys(rows["regime"]))
    arms = list(dict.fromkeys(rows["arm"]))[::-1]
    figure, axes = new_figure(1, len(regimes), row_height=0.85 + ROW * len(arms), share_x=False)
    for panel, regime in zip(axes[0], regimes, strict=True):
        of_regime = rows[rows["regime"] == regime]
        for at in AT:
            _draw_points(panel, of_regime[of_regime["at"] == at], arms, at=at, scale=scale)
        panel.axvline(0, color="0.6", linewidth=0.6)
        panel.set_yticks(range(len(arms)), arms if panel is axes[0][0] else [])
        panel.set_ylim(-0.6, len(arms) - 0.4)
        panel.set_title(f"regime {regime}")
        panel.set_xlabel(unit)
    against, pairs = rows["against"].iloc[0], int(rows["pairs"].min())
    figure.suptitle(f"{title}\ndifference to {against}, {pairs} paired seeds, 95 % t intervals")
    legend_below(figure, axes[0])
    return figure


def _draw_points(
    panel: Axes, rows: pd.DataFrame, arms: Sequence[str], *, at: str, scale: float
) -> None:
    if rows.empty:
        return
    shift = 0.12 if at == "own" else -0.12
    ends = [
        scale * (rows["difference"] - rows["low"]),
        scale * (rows["high"] - rows["difference"]),
    ]
    panel.errorbar(
        scale * rows["difference"],
        rows["arm"].map(list(arms).index) + shift,
        xerr=ends,
        linestyle="",
        capsize=1.5,
        linewidth=0.9,
        label=WORDS[at],
        **STYLES[at],
    )


def draw_grid(rows: pd.DataFrame, design: Design) -> Figure:
    """Draw one arm's difference in each regime of a grid, as a row of points with intervals.

    Args:
        rows: of `comparisons.compare`, of one outcome, arm and arm compared with.
        design: whose regimes are drawn, from the top.
    """
    rows = rows[(rows["at"] == "own") & rows["regime"].isin(list(design.arms_of))]
    regimes = list(dict.fromkeys(rows["regime"]))[::-1]
    figure, axes = new_figure(1, row_height=0.8 + ROW * len(regimes))
    panel = axes[0][0]
    ends = [rows["difference"] - rows["low"], rows["high"] - rows["difference"]]
    places = rows["regime"].map(regimes.index)
    panel.errorbar(rows["difference"], places, xerr=ends, fmt="o", capsize=1.5, color=PALETTE[0])
    panel.axvline(0, color="0.6", linewidth=0.6)
    panel.set_yticks(range(len(regimes)), regimes)
    panel.set_xlabel("nats per token")
    arm, against, pairs = rows["arm"].iloc[0], rows["against"].iloc[0], int(rows["pairs"].min())
    figure.suptitle(
        "Test loss at the validated temperature\n"
        f"{arm} minus {against}, {pairs} paired seeds, 95 % t intervals"
    )
    return figure


def draw_ranks(table: pd.DataFrame) -> Figure:
    """Draw the entropy effective ranks of dW, of single runs and of means over mask seeds.

    Args:
        table: of `ranks.rank_table`.
    """
    regimes = list(dict.fromkeys(table["regime"]))
    counts = [table[table["regime"] == regime]["arm"].nunique() for regime in regimes]
    figure, axes = new_figure(len(regimes), row_height=1.0, share_x=True)
    figure.set_figheight(0.8 + sum(0.35 + ROW * count for count in counts))
    axes[0][0].get_gridspec().set_height_ratios(counts)
    for panel, regime in zip(axes[:, 0], regimes, strict=True):
        rows = table[table["regime"] == regime]
        arms = list(dict.fromkeys(rows["arm"]))[::-1]
        for quantity, style in RANK_STYLES.items():
            if quantity not in rows:  # no arm has several runs
                continue
            shown = rows if quantity == "single_entropy" else rows[rows["runs"] > 1]
            summary = shown.groupby("arm")[quantity]
            means = summary.apply(mean_interval)
            for arm, interval in means.items():
                ends = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
                panel.errorbar(
                    interval.estimate, arms.index(arm), xerr=ends, linestyle="", capsize=1.5,
                    **style,
                )  # fmt: skip
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(-0.6, len(arms) - 0.4)
        panel.set_title(f"regime {regime}")
    axes[-1][0].set_xlabel("entropy effective rank of dW (median over modules)")
    seeds = table["seed"].nunique()
    figure.suptitle(f"Effective rank of the update, {seeds} seeds, 95 % t intervals")
    legend_below(figure, axes[0][0], columns=1)
    return figure


def draw_inference(rows: pd.DataFrame) -> Figure:
    """Draw the difference of each predictor to the full update, a panel for each regime.

    Args:
        rows: of `inference.inference_differences`.
    """
    rows = rows[rows["outcome"] == "calibrated_loss"]
    rows = rows[rows["scale"].between(0.7, 1.3)]  # others are much worse, and would flatten these
    scales = rows["scale"].map("update times {:g}".format)
    names = rows["predictor"].where(rows["predictor"] != "scaled", scales)
    rows = rows.assign(name=names.replace(PREDICTOR_NAMES))
    places = list(dict.fromkeys(rows["name"]))[::-1]
    arms, regimes = list(dict.fromkeys(rows["arm"])), list(dict.fromkeys(rows["regime"]))
    figure, axes = new_figure(1, len(regimes), row_height=0.85 + 0.28 * len(places), share_x=False)
    for panel, regime in zip(axes[0], regimes, strict=True):
        for number, arm in enumerate(arms):
            shown = rows[(rows["regime"] == regime) & (rows["arm"] == arm)]
            shift = 0.25 * (len(arms) - 1) / 2 - 0.25 * number
            ends = [shown["difference"] - shown["low"], shown["high"] - shown["difference"]]
            panel.errorbar(
                shown["difference"],
                shown["name"].map(places.index) + shift,
                xerr=ends,
                linestyle="",
                capsize=1.5,
                linewidth=0.9,
                marker=MARKERS[number],
                color=PALETTE[number],
                label=arm,
            )
        panel.axvline(0, color="0.6", linewidth=0.6)
        panel.set_yticks(range(len(places)), places if panel is axes[0][0] else [])
        panel.set_title(f"regime {regime}")
        panel.set_xlabel("nats per token")
    figure.suptitle(
        "Test loss at the validated temperature\n"
        f"difference to the full update, {int(rows['pairs'].min())} runs, 95 % t intervals"
    )
    legend_below(figure, axes[0])
    return figure
