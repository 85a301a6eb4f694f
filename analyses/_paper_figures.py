"""Figures 2 and 3 of the paper, from the tidy table of `paper_tables.compute`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.published import AVERAGE, LLAMA2, TABLE_5, TABLES
from subspace_lab.figures.style import (
    LINES,
    MARKERS,
    PALETTE,
    legend_below,
    new_figure,
    paper_style,
)

FAMILIES = {1: "commonsense", 2: "math", 3: "code"}
PUBLISHED: dict[str, Any] = {"color": "0.5", "markersize": 4, "linestyle": ""}


def draw_pruning_rates(table: pd.DataFrame) -> Figure:
    """Draw the average over the pruning rate 1 - keep_prob, in one panel per family.

    A line is one base model and rank under one kind of mask; LoRA of the same base and rank is
    the level with a band. Published is what the tables state: LoRA's level on LLaMA2-7B, and
    DropLoRA at 0.5 on commonsense (Table 5).
    """
    with paper_style():
        figure, axes = new_figure(len(FAMILIES), row_height=1.4)
        for panel, (number, name) in zip(axes[:, 0], FAMILIES.items(), strict=True):
            rows = _averages(table, number)
            groups = list(dict.fromkeys(zip(rows["model"], rows["rank"], strict=True)))
            for g, (model, rank) in enumerate(groups):
                members = rows[(rows["model"] == model) & (rows["rank"] == rank)]
                _draw_level(panel, members[members["method"] == "LoRA"], f"{model}, r {rank}", g)
                masked = members[members["method"] == "DropLoRA"]
                kinds = masked.groupby(masked["settings"].map(_kind_of_mask))
                for k, (kind, runs) in enumerate(kinds):
                    label = f"{model}, r {rank}: {kind}"
                    _draw_line(panel, runs, "prune_prob", label, colour=g, line=k)
            published = next(
                row.scores[-1]
                for row in TABLES[number - 1].rows
                if (row.model, row.label) == (LLAMA2, "LoRA")
            )
            panel.axhline(published, color="0.5", linewidth=0.8, label="published LoRA, LLaMA2-7B")
            if number == 1:
                panel.plot(0.5, TABLE_5[-1].accuracy, label="published DropLoRA, LLaMA2-7B",
                           marker="*", **PUBLISHED)  # fmt: skip
            panel.set_title(name)
            panel.set_ylabel("average (%)")
        axes[-1, 0].set_xlabel("pruning rate, 1 - keep_prob")
        axes[-1, 0].set_xlim(-0.02, 0.62)
        legend_below(figure, axes[:, 0], columns=1)
    return figure


def draw_ranks(table: pd.DataFrame) -> Figure:
    """Draw the commonsense average over the rank for LoRA and each mask law, alpha as in the run.

    Published are Table 5's three numbers; those of the paper's own figure are printed nowhere.
    """
    with paper_style():
        figure, axes = new_figure(1, row_height=1.9)
        panel = axes[0, 0]
        rows = _averages(table, 1)
        rows = rows[rows["method"].isin(["LoRA", "DropLoRA"])]
        laws = rows["settings"].str.split(", ", n=1).str[1].fillna("")
        curves = rows.groupby(["model", "method", laws], sort=False)
        for i, ((model, method, law), members) in enumerate(curves):
            label = f"{model}: {method}" + (f", {law}" if law else "")
            _draw_line(panel, members, "rank", label, colour=i, line=i // len(PALETTE))
        for marker, method in (("o", "LoRA"), ("*", "DropLoRA")):
            stated = [row for row in TABLE_5 if row.method == method]
            ranks, scores = [row.rank for row in stated], [row.accuracy for row in stated]
            panel.plot(ranks, scores, marker=marker, label=f"published {method}, {LLAMA2}",
                       **PUBLISHED)  # fmt: skip
        panel.set_xscale("log", base=2)
        ticks = sorted({8, 16, 32, 64, *rows["rank"]})
        panel.set_xticks(ticks, [str(rank) for rank in ticks])
        panel.set_xlabel("rank r")
        panel.set_ylabel("commonsense average (%)")
        legend_below(figure, panel, columns=1)
    return figure


def _averages(table: pd.DataFrame, number: int) -> pd.DataFrame:
    chosen = (table["table"] == number) & (table["column"] == AVERAGE) & (table["seeds"] > 0)
    return table[chosen]


def _kind_of_mask(settings: str) -> str:
    """Cut rank and keep_prob off: "rank 8, step mask, rescaled, keep_prob 0.5"."""
    return ", ".join(settings.split(", ")[1:-1])


def _draw_level(axes: Axes, rows: pd.DataFrame, label: str, place: int) -> None:
    colour = PALETTE[place % len(PALETTE)]
    for mean, low, high in rows[["mean", "low", "high"]].to_numpy(dtype=float):
        axes.axhline(mean, color=colour, linestyle="--", label=f"{label}: LoRA")
        if np.isfinite(low):
            axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)


def _draw_line(
    axes: Axes, rows: pd.DataFrame, x: str, label: str, *, colour: int, line: int
) -> None:
    rows = rows.sort_values(x)
    spread = np.nan_to_num(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]))
    axes.errorbar(
        rows[x],
        rows["mean"],
        yerr=spread,
        marker=MARKERS[(colour + line) % len(MARKERS)],
        color=PALETTE[colour % len(PALETTE)],
        linestyle=LINES[line % len(LINES)],
        capsize=2,
        elinewidth=0.8,
        label=label,
    )
