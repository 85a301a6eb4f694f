"""Figures 2 and 3 of the paper, from the tidy table of `paper_tables.compute`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses import kit
from analyses.comparisons.configurations import mask_text, settings_text
from analyses.paper_tables.published import AVERAGE, LLAMA2, TABLE_5, TABLES
from subspace_lab.figures.style import LINES, MARKERS, PALETTE

FAMILIES = {1: "commonsense", 2: "math", 3: "code"}
KIND = ["other_settings", "sampling", "granularity", "rescale"]
PUBLISHED: dict[str, Any] = {"color": "0.5", "markersize": 4, "linestyle": "", "zorder": 3}
DODGE = 0.012, 0.08  # between neighboring curves: of the pruning rate, in doublings of the rank


def measured_averages(table: pd.DataFrame) -> pd.DataFrame:
    """Select what the figures draw: averages that were measured, of LoRA and DropLoRA."""
    averages = table["table"].isin(list(FAMILIES)) & (table["column"] == AVERAGE)
    rows = table[averages & (table["seeds"] > 0) & table["method"].isin(["LoRA", "DropLoRA"])]
    return rows.assign(family=rows["table"].map(FAMILIES))


def of_commonsense(table: pd.DataFrame) -> pd.DataFrame:
    """Select the measured averages on commonsense, those of Figure 3."""
    rows = measured_averages(table)
    return rows[rows["family"] == "commonsense"]


def draw_pruning_rates(averages: pd.DataFrame, page: kit.Page) -> None:
    """Draw the average over the pruning rate 1 - keep_prob, in one panel per measured family.

    A line is one base model and rank under one kind of mask; LoRA of the same base and rank is
    the level with a band. Published is what the tables state: LoRA's level on LLaMA2-7B, and
    DropLoRA at 0.5 on commonsense (Table 5).
    """
    measured = set(averages["family"])
    numbers = {name: number for number, name in FAMILIES.items() if name in measured}
    axes = page.panels(list(numbers), row_height=1.4, share_x=True)
    for name, panel in axes.items():
        groups = averages[averages["family"] == name].groupby(["model", "rank"], sort=False)
        for g, ((model, rank), members) in enumerate(groups):
            _draw_level(panel, members[members["method"] == "LoRA"], f"{model}, r {rank}", g)
            masked = members[members["method"] == "DropLoRA"]
            for k, (_, runs) in enumerate(masked.groupby(KIND, sort=False, dropna=False)):
                first = runs.iloc[0].to_dict()
                kind = ", ".join(filter(None, [first["other_settings"], mask_text(first)]))
                label = f"{model}, r {rank}: {kind}"
                places = runs["prune_prob"] + DODGE[0] * k
                _draw_line(panel, places, runs, label, color=g, line=k + 1)  # LoRA is line 0
        rows = TABLES[numbers[name] - 1].rows
        level = next(row for row in rows if (row.model, row.label) == (LLAMA2, "LoRA")).scores[-1]
        panel.axhline(
            level, color="0.5", linewidth=0.8, linestyle=":", label="published LoRA, LLaMA2-7B"
        )
        if name == "commonsense":
            drop = TABLE_5.rows[-1]
            published = {"label": "published DropLoRA, LLaMA2-7B", "marker": "*", **PUBLISHED}
            assert drop.prune_prob is not None
            panel.plot([drop.prune_prob], [drop.scores[0]], **published)
        page.set_title(panel, name)
        panel.set_ylabel("average (%)")
        if panel.xaxis.get_tick_params()["labelbottom"]:
            panel.set_xlabel("pruning rate, 1 - keep_prob")
        panel.set_xlim(-0.02, 0.62)
    page.legend(axes, columns=1)


def draw_ranks(averages: pd.DataFrame, page: kit.Page) -> None:
    """Draw the commonsense average over the rank for LoRA and each mask law, alpha as in the run.

    Published are Table 5's three numbers; those of the paper's own figure are printed nowhere.
    """
    axes = page.panels(["commonsense"], row_height=1.9)
    panel = axes["commonsense"]
    curves = averages.groupby(["model", "method", "keep_prob", *KIND], sort=False, dropna=False)
    middle = (curves.ngroups - 1) / 2
    for i, (_, members) in enumerate(curves):
        first = members.iloc[0].to_dict()
        law = settings_text(first, with_rank=False)
        label = f"{first['model']}: {first['method']}" + (f", {law}" if law else "")
        places = members["rank"] * 2 ** (DODGE[1] * (i - middle))
        _draw_line(panel, places, members, label, color=i, line=i)
    for marker, size, method in (("_", 9, "LoRA"), ("*", 4, "DropLoRA")):
        stated = [(row.rank, row.scores[0]) for row in TABLE_5.rows if row.method == method]
        style = {"label": f"published {method}, {LLAMA2}", "marker": marker, **PUBLISHED}
        panel.plot(*zip(*stated, strict=True), **style | {"markersize": size})
    panel.set_xscale("log", base=2)
    ticks = sorted({8, 16, 32, 64, *averages["rank"]})
    panel.set_xticks(ticks, [str(rank) for rank in ticks])
    panel.set_xlabel("rank r")
    panel.set_ylabel("commonsense average (%)")
    page.legend(axes, columns=1)


def _draw_level(axes: Axes, rows: pd.DataFrame, label: str, place: int) -> None:
    color = PALETTE[place % len(PALETTE)]
    for mean, low, high in rows[["mean", "low", "high"]].to_numpy(dtype=float):
        axes.axhline(mean, color=color, linestyle=LINES[0], label=f"{label}: LoRA")
        if np.isfinite(low):
            axes.axhspan(low, high, color=color, alpha=0.12, linewidth=0)


def _draw_line(
    axes: Axes, places: pd.Series[float], rows: pd.DataFrame, label: str, *, color: int, line: int
) -> None:
    spread = np.nan_to_num(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]))
    order = np.argsort(places.to_numpy())
    style: dict[str, Any] = {
        "color": PALETTE[color % len(PALETTE)],
        "linestyle": LINES[line % len(LINES)],
        "marker": MARKERS[line % len(MARKERS)],
        "label": label,
    }
    axes.errorbar(
        places.iloc[order], rows["mean"].iloc[order], yerr=spread[:, order], capsize=2,
        elinewidth=0.8, **style,
    )  # fmt: skip
