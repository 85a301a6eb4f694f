"""How did training go: loss per step, and the evaluations on held-out rows.

    python -m analyses.learning_curves --run RUN [--run RUN2 ...]

The training loss is the mean negative log-likelihood of the batch in nats per response token, under
the step's masks where a run is masked; the evaluations are of the full-rank model, on the rows of
the run's eval_split. Exact match is the share of rows whose whole response greedy decoding would
write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.errors import UserError
from subspace_lab.figures.style import (
    LINES,
    MARKERS,
    PALETTE,
    legend_below,
    new_figure,
    step_axis,
)
from subspace_lab.runs.metrics import evaluations
from subspace_lab.runs.run import Run

COLUMNS = {
    "loss": ("training loss", "nats/token"),
    "window_loss": ("training loss, mean since the last logged step", "nats/token"),
    "eval_response_loss": ("{} loss", "nats/token"),
    "eval_exact_match": ("{} exact match", "share of rows"),
}
"""Columns of the metrics, with title (of evaluations with the split) and unit."""

ROWS = "eval_examples"


def compute(
    run: Run, *, steps: Sequence[int] | None = None, modules: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read the metrics of a run.

    A row is a run and optimizer step, with `split` (which rows were evaluated) and the
    columns of `Run.metrics`; evaluations are nan at steps without one.

    Args:
        run: the run.
        steps: only these; None: all.
        modules: must be None: metrics are those of the whole model.

    Raises:
        UserError: if the run has no losses, or modules are asked for.
    """
    if modules is not None:
        raise UserError("learning curves are those of the whole model: leave --modules out")
    table = run.metrics
    if table.reindex(columns=list(COLUMNS)).isna().all(axis=None):
        raise UserError(f"{run.path} has no losses: its training logged none and evaluated nothing")
    table.insert(0, "run", run.name)
    table.insert(1, "split", run.evaluated_split)
    return table if steps is None else table[table["step"].isin(steps)]


def draw(table: pd.DataFrame) -> Figure:
    """Draw training loss, loss and exact match of evaluations over steps, one color per run."""
    shown = [name for name in COLUMNS if name in table and table[name].notna().any()]
    figure, axes = new_figure(len(shown), row_height=1.2)
    for i, (run, rows) in enumerate(table.groupby("run", sort=False)):
        look: dict[str, Any] = {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": LINES[i % len(LINES)],
            "label": str(run),
        }
        for axis, name in zip(axes[:, 0], shown, strict=True):
            found = rows.dropna(subset=[name])
            marker = MARKERS[i % len(MARKERS)] if name != "loss" else ""
            axis.plot(found["step"], found[name], marker=marker, **look)
    for axis, name in zip(axes[:, 0], shown, strict=True):
        title, unit = COLUMNS[name]
        axis.set_title(title.format(" and ".join(kit.evaluated_rows(table, examples=ROWS))))
        axis.set_ylabel(unit)
    if note := kit.rows_note(table, examples=ROWS):
        figure.suptitle(note, fontsize="medium")
    step_axis(axes[-1, 0])
    legend_below(figure, axes[:, 0])
    return figure


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's first and last losses; the last is nan for a run that diverged."""
    summary: dict[str, float | int | str] = {}
    for run, rows in table.groupby("run", sort=False):
        for name, (title, unit) in COLUMNS.items():
            values = _measured(rows, name) if name in rows else rows["step"][:0]
            if values.notna().any():
                title = title.format(rows["split"].iloc[0])
                summary[f"{run}, {title} ({unit})"] = (
                    f"{values.iloc[0]:.3g} → {values.iloc[-1]:.3g}"
                )
    return summary


def _measured(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    """Give a column at the steps where it was measured; nan is what was not finite there."""
    if name.startswith("eval_"):
        return evaluations(rows)[name]
    logged = rows.get("learning_rate", rows[name]).notna()
    if name == "loss" and "window_loss" in rows:
        logged &= rows["window_loss"].isna()
    return rows.loc[logged, name]


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="learning_curves",
    description=__doc__,
    question="how did training go?",
    needs=kit.Needs.METRICS,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="Top: the training loss per batch. For masked runs it is computed under that step's "
    "mask, and so it lies above the loss of the full model; where batches group examples of "
    "similar length, as in the demo, they differ in difficulty, which makes the curve jagged. "
    "Below: loss and exact match of the full model on examples that it never trains on.",
    position=10,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
