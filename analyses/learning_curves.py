"""How did training go: loss per step, and the evaluations on held-out examples.

    python -m analyses.learning_curves --run RUN [--run RUN2 ...]

The training loss is the mean negative log-likelihood of the batch in nats per response token, under
the step's masks where a run is masked; the evaluations are of the full-rank model, on the
examples of the run's eval_split. Exact match is the share of examples whose whole response greedy
decoding would write.
"""

from __future__ import annotations

import pandas as pd

from analyses import kit
from subspace_lab.errors import UserError
from subspace_lab.figures.panels import draw_panels
from subspace_lab.runs.metrics import evaluations
from subspace_lab.runs.run import Run

COLUMNS = {
    "loss": ("training loss", "nats/token"),
    "window_loss": ("training loss, mean since the last logged step", "nats/token"),
    "eval_response_loss": ("{} loss", "nats/token"),
    "eval_exact_match": ("{} exact match", "share of examples"),
}
"""Columns of the metrics, with title (of evaluations with the split) and unit."""
BATCH, SMOOTH = "of each batch", "running mean"
PANELS = [
    kit.Panel(
        {"smooth_loss": SMOOTH, "loss": BATCH} if name == "loss" else name,
        title=title.format(split),
        unit=unit,
        where={"split": split} if split else {},
        only_alone=("loss",),
        faint=(BATCH,),
    )
    for name, (title, unit) in COLUMNS.items()
    for split in (("validation", "test", "held-out") if name.startswith("eval_") else ("",))
]
LEAST_WINDOW, WINDOWS = 5, 20  # steps of the running mean: at least; in all of training


def compute(run: Run, *, steps: kit.Steps = None, modules: kit.Modules = None) -> pd.DataFrame:
    """Read the metrics of a run.

    A row is a run and optimizer step, with `split` (which examples were evaluated) and the
    columns of `Run.metrics`; evaluations are nan at steps without one.

    Raises:
        UserError: if the run has no losses, or modules are asked for.
    """
    if modules is not None:
        raise UserError("learning curves are those of the whole model: omit --modules")
    table = run.metrics
    if table.reindex(columns=list(COLUMNS)).isna().all(axis=None):
        raise UserError(f"{run.path} has no losses: its training logged none and evaluated nothing")
    table.insert(0, "run", run.name)
    table.insert(1, "split", run.evaluated_split)
    return table if steps is None else table[table["step"].isin(steps)]


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's first and last losses; the last is nan for a run that diverged."""
    summary = {}
    for run, rows in table.groupby("run", sort=False):
        for name, (title, unit) in COLUMNS.items():
            values = _measured(rows, name) if name in rows else rows["step"][:0]
            if values.notna().any():
                what = f"{run}, {title.format(rows['split'].iloc[0])} ({unit})"
                summary[what] = f"{values.iloc[0]:.3g} → {values.iloc[-1]:.3g}"
    return summary


def _measured(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    """Give a column at the steps where it was measured; nan is what was not finite there."""
    if name.startswith("eval_"):
        return evaluations(rows)[name]
    logged = rows.get("learning_rate", rows[name]).notna()
    if name == "loss" and "window_loss" in rows:
        logged &= rows["window_loss"].isna()
    return rows.loc[logged, name]


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn, with what was evaluated."""
    evaluated = kit.examples_note(table, examples="eval_examples")
    return kit.curves_of(PANELS, smoothed(table)).assign(evaluated=evaluated)


def smoothed(table: pd.DataFrame) -> pd.DataFrame:
    """Add the training loss's mean over the steps around, fewer at the ends.

    Batches differ in difficulty, above all those of similar length, and hide the trend.
    """
    if "loss" not in table:
        return table
    table = table.reset_index(drop=True)
    window = max(LEAST_WINDOW, table.groupby("run")["loss"].count().max() // WINDOWS)
    logged = table[table["loss"].notna()].sort_values("step", kind="stable")
    means = logged.groupby("run", sort=False)["loss"].transform(
        lambda loss: loss.rolling(window | 1, center=True, min_periods=1).mean()
    )
    return table.assign(smooth_loss=means)


def draw(curves: pd.DataFrame, page: kit.Page) -> None:
    """Draw the curves, a panel for each loss and share."""
    evaluated = "".join(curves["evaluated"].iloc[:1])
    title = f"Learning curves, {evaluated}" if evaluated else "Learning curves"
    draw_panels(curves, page, panels=PANELS, title=title)


plot = kit.Plot(draw, curves)

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
    "similar length, as in the demo, they differ in difficulty, so a running mean is drawn. "
    "Below: loss and exact match of the full model on examples that it never trains on.",
    position=10,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
