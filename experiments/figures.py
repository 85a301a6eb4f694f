"""Figures of experiments, drawn from their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from experiments.comparisons import AT_ARMS_RATE, PRIMARY
from experiments.design import Design
from subspace_lab.figures.style import PALETTE
from subspace_lab.stats.intervals import mean_interval

OUTCOME = "Test loss at the validated temperature"
INTERVALS = "95 % t intervals"
WORDS = {
    "own": "each at its own rate",
    "equal": "at the baseline's rate",
    AT_ARMS_RATE: "at the arm's rate",
}
STYLES: dict[str, dict[str, Any]] = {
    "own": {"marker": "o", "color": PALETTE[0]},
    "equal": {"marker": "s", "color": PALETTE[1], "markerfacecolor": "white"},
    AT_ARMS_RATE: {"marker": "^", "color": PALETTE[4], "markerfacecolor": "white"},
}
PREDICTOR_NAMES = {
    "arithmetic": "arithmetic mean\nof 16 masks",
    "geometric": "geometric mean\nof 16 masks",
    "singles": "mean of\nsingle masks",
}
ABOVE, BELOW = -0.17, 0.17  # of an arm's place
SHIFTS = {"own": ABOVE, "equal": BELOW, AT_ARMS_RATE: 0.0}
RANK_STYLES: dict[str, tuple[float, dict[str, Any]]] = {
    "single_entropy": (ABOVE, {"label": "of single runs", "marker": "o", "color": PALETTE[0]}),
    "mean_entropy": (
        BELOW,
        {
            "label": "of the mean over mask seeds",
            "marker": "s",
            "color": PALETTE[1],
            "markerfacecolor": "white",
        },
    ),
    "crossed_entropy": (
        ABOVE,
        {"label": "of that mean, crossed", "marker": "^", "color": PALETTE[2]},
    ),
    "planted_entropy": (
        BELOW,
        {
            "label": "crossed, were the mean LoRA's",
            "marker": "D",
            "color": PALETTE[2],
            "markerfacecolor": "white",
        },
    ),
}
ROW, POINT, HEAD = 0.19, 0.09, 0.45  # inches for an arm, one of its points, and a panel's axis
SIDE_BY_SIDE = 1.0  # inches: least width of panels of which the left one has names
FAR = 4.0  # times the usual distance of intervals' farther ends from 0


def draw_experiment(
    design: Design, tables: Mapping[str, pd.DataFrame], page: kit.Page
) -> dict[str, Figure]:
    """Draw an experiment's figures, by kind.

    Args:
        design: the experiment.
        tables: of `python -m experiments`, by kind.
        page: where to draw.
    """
    if design.measures == "inference":
        draw_inference(tables["inference-differences"], page)
        return {"inference": page.figure}
    figures = {}
    if "ranks" in tables:
        draw_ranks(tables["ranks"], page)
        figures["ranks"] = page.figure
        if design.rates_of is not None:  # no arm has a rate of its own
            return figures
    rows = tables["differences"]
    rows = rows[(rows["outcome"] == PRIMARY) & (rows["against"] == design.baseline)]
    if design.slope:
        of_arm = rows["arm"] == design.primary[0][0]
        draw_grid(rows[of_arm & rows["regime"].isin(list(design.arms_of))], page)
    else:
        draw_differences(rows, page)
    return figures | {"differences": page.figure}


def draw_differences(rows: pd.DataFrame, page: kit.Page) -> None:
    """Draw the arms' differences to the baseline, a panel for each regime.

    Args:
        rows: of `comparisons.compare`, of one outcome and one arm compared with.
        page: where to draw.
    """
    arms, regimes = _distinct(rows["arm"]), _distinct(rows["regime"])
    panels = page.panels(
        regimes, row_height=HEAD + ROW * len(arms), panel_width=SIDE_BY_SIDE, share_x=False
    )
    usual = rows[["low", "high"]].abs().max(axis=1).groupby(rows["regime"]).transform("median")
    far = rows["difference"].abs() > FAR * usual
    for regime, panel in panels.items():
        here = rows["regime"] == regime
        for at, shift in SHIFTS.items():
            shown = rows[here & (rows["at"] == at) & ~far]
            _draw_intervals(panel, shown, arms, shift=shift, label=WORDS[at], **STYLES[at])
        _write_beyond(panel, rows[here & far], arms)
        _finish_differences(panel, arms, title=f"regime {regime}")
    against, pairs = rows["against"].iloc[0], int(rows["pairs"].min())
    beyond = "\nin numbers: differences beyond the axis" * bool(far.any())
    page.title(f"{OUTCOME}\ndifference to {against}, {pairs} paired seeds, {INTERVALS}{beyond}")
    page.legend(panels)


def draw_grid(rows: pd.DataFrame, page: kit.Page) -> None:
    """Draw one arm's difference in each regime of a grid, as a row of points with intervals.

    Args:
        rows: of `comparisons.compare`, of one outcome, arm and arm compared with.
        page: where to draw.
    """
    rows = rows[rows["at"] == "own"]
    regimes = _distinct(rows["regime"])
    (panel,) = page.panels(["differences"], row_height=HEAD + ROW * len(regimes)).values()
    _draw_intervals(panel, rows, regimes, by="regime", **STYLES["own"])
    _finish_differences(panel, regimes)
    arm, against, pairs = rows["arm"].iloc[0], rows["against"].iloc[0], int(rows["pairs"].min())
    page.title(f"{OUTCOME}\n{arm} minus {against}, {pairs} paired seeds, {INTERVALS}")


def draw_ranks(table: pd.DataFrame, page: kit.Page) -> None:
    """Draw the entropy effective ranks of dW, of single runs and of means over mask seeds.

    Args:
        table: of `ranks.rank_table`.
        page: where to draw.
    """
    arms_of = {
        str(regime): _distinct(rows["arm"]) for regime, rows in table.groupby("regime", sort=False)
    }
    panels = page.panels(list(arms_of), share_x=True)
    _fit_heights(page, [len(arms) for arms in arms_of.values()])
    for regime, panel in panels.items():
        rows, arms = table[table["regime"] == regime], arms_of[regime]
        for quantity, (shift, style) in RANK_STYLES.items():
            if quantity not in rows:  # no arm has several runs
                continue
            shown = rows if quantity == "single_entropy" else rows[rows["runs"] > 1]
            means = _mean_intervals(shown, quantity)
            _draw_intervals(panel, means, arms, shift=shift, **style)
        _name_rows(panel, arms)
        panel.set_title(f"regime {regime}")
        if panel.xaxis.get_tick_params()["labelbottom"]:
            panel.set_xlabel("entropy effective rank of dW")
    seeds = table["seed"].nunique()
    page.title(f"Effective rank of the update\nmedian over modules, {seeds} seeds, {INTERVALS}")
    page.legend(panels)


def draw_inference(rows: pd.DataFrame, page: kit.Page) -> None:
    """Draw the difference of each predictor to the full update, a panel for each regime.

    Args:
        rows: of `inference.inference_differences`.
        page: where to draw.
    """
    rows = rows[rows["outcome"] == "calibrated_loss"]
    rows = rows[rows["scale"].between(0.7, 1.3)]  # others are much worse, and would flatten these
    scales = rows["scale"].map("update\ntimes {:g}".format)
    predictors = rows["predictor"].where(rows["predictor"] != "scaled", scales)
    rows = rows.assign(name=predictors.replace(PREDICTOR_NAMES))
    names, arms = _distinct(rows["name"]), _distinct(rows["arm"])
    panels = page.panels(
        _distinct(rows["regime"]),
        row_height=HEAD + (POINT * len(arms) + 0.03) * len(names),
        panel_width=SIDE_BY_SIDE,
        share_x=False,
    )
    for regime, panel in panels.items():
        for number, arm in enumerate(arms):
            shown = rows[(rows["regime"] == regime) & (rows["arm"] == arm)]
            shift, style = 0.25 * (number - (len(arms) - 1) / 2), page.style(arm)
            _draw_intervals(panel, shown, names, by="name", shift=shift, label=arm, **style)
        _finish_differences(panel, names, title=f"regime {regime}")
    runs = int(rows["pairs"].min())
    page.title(f"{OUTCOME}\ndifference to the full update, {runs} runs, {INTERVALS}")
    page.legend(panels)


def _distinct(values: pd.Series[Any]) -> list[str]:
    return list(dict.fromkeys(values))


def _mean_intervals(rows: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Give each arm's mean over seeds, as `difference`, with its interval."""
    means = []
    for arm, values in rows.groupby("arm", sort=False)[quantity]:
        mean = mean_interval(values)
        means.append({"arm": arm, "difference": mean.estimate, "low": mean.low, "high": mean.high})
    return pd.DataFrame(means, columns=["arm", "difference", "low", "high"])


def _draw_intervals(
    panel: Axes,
    rows: pd.DataFrame,
    names: Sequence[str],
    *,
    by: str = "arm",
    shift: float = 0.0,
    **style: Any,
) -> None:
    """Draw points with horizontal intervals at the places of their names."""
    if rows.empty:
        return
    center, places = rows["difference"], rows[by].map(names.index) + shift
    ends = [center - rows["low"], rows["high"] - center]
    panel.errorbar(center, places, xerr=ends, linestyle="", capsize=1.5, linewidth=0.9, **style)


def _write_beyond(panel: Axes, rows: pd.DataFrame, arms: Sequence[str]) -> None:
    """Write differences beyond the axis at the end where they would stand."""
    for arm, differences in rows.groupby("arm")["difference"]:
        numbers = ", ".join(f"{difference:+.2f}" for difference in differences).replace("-", "−")
        right = differences.iloc[0] > 0
        panel.annotate(
            f"{numbers} →" if right else f"← {numbers}",
            (1 if right else 0, arms.index(str(arm))),
            xycoords=("axes fraction", "data"),
            horizontalalignment="right" if right else "left",
            verticalalignment="center",
        )


def _finish_differences(panel: Axes, names: Sequence[str], *, title: str = "") -> None:
    _name_rows(panel, names)
    panel.axvline(0, color="0.6", linewidth=0.6)
    panel.set_title(title)
    panel.set_xlabel("nats per token")


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    """Write names from the top, once for panels side by side."""
    spec = panel.get_subplotspec()
    panel.set_yticks(range(len(names)), names if spec is None or spec.is_first_col() else [])
    panel.set_ylim(len(names) - 0.4, -0.6)


def _fit_heights(page: kit.Page, counts: Sequence[int]) -> None:
    """Make each row of panels as high as its arms need."""
    highest = [max(counts[at : at + page.columns]) for at in range(0, len(counts), page.columns)]
    heights = [HEAD + ROW * count for count in highest]
    spec = page.figure.axes[0].get_subplotspec()
    assert spec is not None
    spec.get_gridspec().set_height_ratios(heights)
    page.figure.set_figheight(sum(heights))
