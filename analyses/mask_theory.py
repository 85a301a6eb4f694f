"""Does the run do what theory says? Every prediction that its record can test, with a verdict.

    python -m analyses.mask_theory --run RUN [--run RUN2 ...]

Three kinds of prediction, told apart in the table and the figure:

    exact       true of every draw, up to rounding: masks are the law's function, one mask per step
                for all rows, tokens and micro-batches, steps of dropped directions ...
    sampling    true on average over random masks, within what chance does in 9,999 of 10,000
                right runs, by the quantiles of the statistic's law: mean kept, overlaps ...
    indicative  rests on assumptions that a real run does not meet, and gets no verdict: how much
                AdamW's momentum moves masked directions, the best inference scale ...

Only some of them test the training itself: what the layers did (the gates observed during
training) and what the weights did (the cores), held against what the run says of itself. Tests of
the masks drawn (the random generator and its record), of the initialization, of what the trained
model does, and identities that hold for any weights are counted apart. Of each prediction `power`
states the smallest deviation that it would notice in at least 80 % of runs of this size, in `unit`;
one that could notice none is not counted. Runs that share a seed may share masks and first weights:
what they `repeat` counts once.

A prediction that a record cannot test is left out: token masks belong to no step, so most of T1
needs step masks, and the steps of dropped directions need cores of every step. Where training chose
its gates itself (several masks a step, an objective other than the masked loss), what is predicted
of masks and of steps under them is not testable. With a LoRA run
among the runs that differs in the mask only, masked runs are compared to it. What
`analyses.ensemble_vs_single` and `analyses.gate_expansion` found is used where it is there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from analyses.predictions import angles, dropped, gates, masks, motion, norms
from analyses.predictions.against_lora import against_lora, find_lora
from analyses.predictions.group import Group, groups_of
from analyses.predictions.inference import inference
from analyses.predictions.rows import Row
from subspace_lab.errors import UserError
from subspace_lab.figures.style import MARKERS, PALETTE, legend_below, new_figure
from subspace_lab.runs.run import Run

COLUMNS = ["run", "prediction", "where", "statement", "tests", "kind", "predicted", "measured"]
COLUMNS += ["tolerance", "agrees", "power", "unit", "probability", "samples", "basis", "meaning"]
COLUMNS += ["evidence", "repeats"]
NAMES = {
    "training": "tests of training agree",
    "initialization": "of the initialization",
    "masks drawn": "of the masks drawn",
    "trained model": "of the trained model",
    "identity": "identities",
}
TITLE_WIDTH = 62  # characters
OFF_SCALE = 2.2  # deviations in tolerances that are drawn at the edge


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
    others: Sequence[Run] = (),
) -> pd.DataFrame:
    """Compute the table; a row is a prediction about one group of modules of a run.

    Args:
        run: a run, or adapters of another tool (which can test little).
        steps: use cores of these steps only; None: all. Masks are always taken whole.
        modules: only these modules; None: all.
        others: runs among which a LoRA run to compare with is sought.

    Returns:
        Columns run, prediction (its name), where (rank and number of modules), statement (number of
        the theorem), tests (training, masks drawn, initialization, trained model, identity), kind
        (exact, sampling, indicative), predicted, measured, tolerance (largest difference that
        agrees, on the side of measured; of indicative rows a scale), agrees (missing where only
        indicative, or where it cannot fail), power (smallest deviation that would be noticed in at
        least 80 % of runs of this size; inf: none), unit (of power), probability (of a deviation as
        large as this one in a right run), samples, basis (of the tolerance), meaning (of a
        disagreement), evidence (hash of the masks or first weights tested), repeats (whether an
        earlier run has the same, see `join`).
    """
    records: list[dict[str, Any]] = []

    def add(where: str, rows: Iterable[Row], group: Group | None = None) -> None:
        for row in rows:
            place = {"run": run.name, "where": where, "agrees": row.agrees, "repeats": False}
            evidence = group.evidence(row.tests) if group else ""
            records.append({**place, "evidence": evidence, **asdict(row)})

    lora = None if run.gates_chosen else find_lora(run, others)
    for group in groups_of(run, steps=steps, modules=modules):
        where = f"r = {group.rank}, {len(group.modules)} modules"
        for topic in _topics(group):
            for predict in topic.PREDICTIONS:
                add(where, predict(group), group)
        for other in groups_of(lora, steps=steps, modules=modules) if lora else ():
            if other.rank == group.rank:
                add(where, against_lora(group, other))
    add("whole model", inference(run))
    table = pd.DataFrame(records, columns=COLUMNS)
    for column in ("run", "where", "statement", "tests", "kind", "unit"):
        table[column] = table[column].astype("category")
    table["agrees"] = table["agrees"].astype("boolean")
    return table


def _topics(group: Group) -> list[Any]:
    """List the predictions that the record of a group can test."""
    topics = [] if group.run.gates_chosen else [masks, gates]
    if group.core_steps:
        topics += [angles, norms] if group.run.gates_chosen else [angles, norms, motion, dropped]
    return topics


def join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of several runs, and mark rows whose evidence an earlier run has as well."""
    table = kit.concatenate(tables)
    if table.empty:
        return table
    same = table.duplicated(["prediction", "where", "evidence", "measured"])
    table["repeats"] = same & (table["evidence"] != "")
    return table


def compare(
    runs: Sequence[Run], *, steps: str | None = None, modules: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compute the table of several runs together; masked ones are compared to a LoRA among them.

    Args:
        runs: the runs.
        steps: cores of which steps, as --steps names them; None: all.
        modules: which modules, as --modules names them; None: all.

    Raises:
        UserError: if no run recorded anything that a prediction is about.
    """
    table = join(
        compute(
            run,
            steps=kit.select_steps(run, run.steps, steps),
            modules=kit.select_modules(run, modules),
            others=runs,
        )
        for run in runs
    )
    if table.empty:
        raise UserError("these runs recorded nothing that a prediction is about")
    return kit.label(table, runs)


def disagreements(table: pd.DataFrame) -> list[str]:
    """Say in a sentence each what disagrees."""
    return [
        f"{row.run}, {row.where}: {row.prediction} ({row.statement}) predicts {row.predicted:.4g}, "
        f"measured {row.measured:.4g}, allowed ±{row.tolerance:.2g} ({row.basis}; "
        f"n = {row.samples}): {row.meaning}."
        for row in table[~table["agrees"].fillna(True)].itertuples()
    ]


def draw(table: pd.DataFrame) -> Figure:
    """Draw (measured - predicted) / tolerance of each prediction, with the band of agreement."""
    order = table.drop_duplicates("prediction")
    places = {name: -place for place, name in enumerate(order["prediction"])}
    figure, grid = new_figure(1, row_height=0.6 + 0.118 * len(places))
    axes: Axes = grid[0, 0]
    axes.axvspan(-1, 1, color="0.92", zorder=0, label="agreement: ±1 tolerance")
    axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    runs = list(dict.fromkeys(table["run"]))
    for i, run in enumerate(runs):
        shift = 0.6 * (0.5 - (i + 0.5) / len(runs))
        look: dict[str, Any] = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for indicative, rows in table[table["run"] == run].groupby(table["agrees"].isna()):
            axes.plot(
                _deviations(rows),
                rows["prediction"].map(places) + shift,
                linestyle="",
                fillstyle="none" if indicative else "full",
                markeredgewidth=0.7,
                clip_on=False,
                zorder=3,
                label=None if indicative else run,
                **look,
            )
    axes.plot([], [], linestyle="", marker="o", fillstyle="none", color="0.3", label="indicative")
    axes.set_xlim(-OFF_SCALE, OFF_SCALE)
    axes.set_xticks([-2, -1, 0, 1, 2], ["≤ −2", "−1", "0", "1", "≥ 2"])
    axes.set_xlabel("deviation / tolerance")
    labels = [f"{row.prediction}  {row.statement}" for row in order.itertuples()]
    axes.set_yticks(list(places.values()), labels, fontsize=5.5)
    axes.set_ylim(-len(places) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)
    title = textwrap.wrap("; ".join(_counts(table)), TITLE_WIDTH)
    figure.suptitle("\n".join(title), fontsize=6)
    legend_below(figure, axes, columns=2)
    return figure


def _deviations(rows: pd.DataFrame) -> pd.Series[float]:
    """Give deviations in tolerances; those off the scale, or where none is allowed, at its edge."""
    difference = rows["measured"] - rows["predicted"]
    scaled = difference / rows["tolerance"].where(rows["tolerance"] > 0)
    edge = difference.map(np.sign) * OFF_SCALE
    return scaled.fillna(edge).clip(-2, 2)


def _counts(table: pd.DataFrame) -> list[str]:
    """Count what agrees, first of the tests of training; then what says nothing, and why."""
    counted = table[table["agrees"].notna() & ~table["repeats"]]
    parts = []
    for tests, name in NAMES.items():
        rows = counted[counted["tests"] == tests]
        if len(rows) or tests == "training":
            parts.append(f"{int(rows['agrees'].sum())} of {len(rows)} {name}")
    indicative = table[table["kind"] == "indicative"]
    outside = (indicative["measured"] - indicative["predicted"]).abs() > indicative["tolerance"]
    if len(indicative):
        parts.append(f"{len(indicative)} indicative, {int(outside.sum())} of them off their scale")
    if repeated := int(table["repeats"].sum()):
        parts.append(f"{repeated} with the evidence of another run")
    if silent := int((table["power"] == float("inf")).sum()):
        parts.append(f"{silent} that cannot fail at this size")
    return parts


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Count what agrees by run, and say what does not."""
    found: dict[str, str] = {
        str(run): "; ".join(_counts(rows))
        for run, rows in table.groupby("run", observed=True, sort=False)
    }
    sentences = disagreements(table)
    return found | {f"disagreement {i}": text for i, text in enumerate(sentences, start=1)}


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="mask_theory",
    description=__doc__,
    question="which of the theory's predictions hold in these runs?",
    needs=kit.Needs.FACTORS,
    compute=compare,
    plot=plot,
    summarize=summarize,
    reading="Each row is a prediction that the record can test: how far the measurement is from "
    "it, in units of its tolerance. Filled marks inside the band agree; hollow ones rest on "
    "assumptions that a real run does not meet, and get no verdict.",
    compares=True,
    join=join,
    position=90,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
