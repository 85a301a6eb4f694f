"""How much of the loss does each rank hold, and are the directions interchangeable?

    python -m analyses.rank_curve --run RUN [--run RUN2 ...] [--steps last] [--draws 8]

Keeps k of the r rank directions of a trained adapter, in all modules at once, and evaluates it on
the examples of the run's eval_split (test examples where it is none), by teacher forcing, without
training. There are four choices of the directions:

- svd: the first k singular directions of B A, the best approximation of rank k;
- prefix: the first k trained directions, as in DyLoRA and Matryoshka adapters;
- random: k trained directions at random, in each module for itself (several random orders, and
  their mean, draw -1);
- left_out: all trained directions of the model but one.

If training made directions interchangeable, as a rank mask might, then every choice of k trained
directions has the same loss: prefix lies on the mean of random, random orders do not differ, and
leaving out any direction of a module costs the same. `evenness` of a module is Kish's effective
number of directions, (sum |c|)^2 / sum c^2 of the costs c of leaving out one, over r: 1 if they are
interchangeable, 1/r if one does it all. LoRA's directions are alike before training, so compare
with a LoRA run, not with 1.

Nothing is rescaled: what is kept is B diag(d) A with gates d of 0 and 1. (A run that was trained
with rescaled masks saw kept directions 1 / keep_prob times as large.) Loss is in nats per response
token, `cost` is the loss above that of all directions. Intervals are 95 % ones over examples, those
of cost paired by example. Areas are means over the kept share k/r: of exact match (AURAC), of cost.

In modules of a rank below the largest, the same share of directions is kept. `--modules` chooses
the modules whose directions are left out; others stay whole. Of PiSSA and MiLoRA the B A that was
trained loses directions; the start that they subtract stays, so that without any direction the
model is their residual base. Of DoRA the magnitudes stay.
"""

from __future__ import annotations

import pandas as pd

from analyses import kit
from analyses.rank_curve.figure import draw, figure_table
from analyses.rank_curve.kept_directions import score_probes
from analyses.rank_curve.probes import LEFT_OUT, all_but_one, curves
from analyses.rank_curve.tables import MEAN, curve_rows, left_out_rows, with_evenness
from subspace_lab.errors import check_counts
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples
from subspace_lab.models import Precision
from subspace_lab.runs.run import Run


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    points: int = 9,
    draws: int = 8,
    left_out: int = 8,
    examples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    dtype: Precision = "fp32",
) -> pd.DataFrame:
    """Evaluate the adapters of `steps` (None: the last) with some of their directions.

    Returns:
        A row is a run, step, curve, kept rank and draw: `run, step, curve, kept` (directions of a
        module of the largest rank, `rank`), `draw` (-1: the mean over random orders, or none),
        `module` and `direction` (of left_out), `loss`, `cost`, `accuracy` (share of examples whose
        response greedy decoding would write), `cost_area` and `accuracy_area` of the curve, all
        with `..._low` and `..._high`, `evenness`, `examples`, `split`, `draws`, `granularity`,
        `keep_prob`, `rescale` (of the masks in training; without: empty, nan, empty), `dtype`.

    Raises:
        UserError: if the run has no adapter to load, or an argument is out of range.
    """
    check_counts(2, points=points)
    check_counts(0, draws=draws, left_out=left_out, seed=seed)
    check_counts(examples=examples, batch_size=batch_size)
    evaluated = evaluation_examples(run, size=examples)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    if modules is not None:
        ranks = {name: ranks[name] for name in modules}
    along = curves(ranks, points=points, draws=draws)
    probes = [probe for curve in along for probe in curve.probes]
    probes = list(dict.fromkeys([*probes, *all_but_one(ranks, modules=left_out)]))
    law = run.mask_law

    def of_snapshot(trained: TrainedModel) -> pd.DataFrame:
        scores = score_probes(
            trained,
            evaluated,
            probes,
            ranks=ranks,
            batch_size=batch_size,
            seed=seed,
            description=f"kept directions of {run.name}",
        )
        rows = [*curve_rows(along, probes, scores), *left_out_rows(probes, scores)]
        return with_evenness(pd.DataFrame(rows)).assign(
            rank=max(ranks.values()),
            examples=len(evaluated),
            split=run.evaluated_split,
            draws=draws,
            granularity=law.granularity if law else "",
            keep_prob=law.keep_prob if law else float("nan"),
            rescale=str(law.rescale) if law else "",
        )

    return kit.over_snapshots(run, of_snapshot, steps=steps, dtype=dtype)


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the areas, the losses at half the rank, and how alike the directions are."""
    summary: dict[str, str] = {}
    titles = {
        "cost_area": "mean cost over ranks (nats/token)",
        "accuracy_area": "mean exact match over ranks",
    }
    for (run, step), rows in table.groupby(["run", "step"], sort=False):
        name = f"{run}, step {step}"
        points = rows[(rows["draw"] == MEAN) & (rows["curve"] != LEFT_OUT)]
        for column, title in titles.items():
            areas = points.drop_duplicates("curve")[
                ["curve", column, f"{column}_low", f"{column}_high"]
            ]
            summary[f"{name}, {title}"] = ", ".join(
                f"{curve} {area:.3g} [{low:.3g}, {high:.3g}]"
                for curve, area, low, high in areas.itertuples(index=False)
            )
        kept = points["kept"].unique()
        half = kept[len(kept) // 2]
        at_half = rows[rows["kept"] == half]
        costs = points.loc[points["kept"] == half].set_index("curve")["cost"]
        text = ", ".join(f"{curve} {cost:.3g}" for curve, cost in costs.items())
        if len(of_draws := at_half.loc[at_half["draw"] > MEAN, "cost"]) > 1:
            text += f" (standard deviation over orders {of_draws.std():.2g})"
        summary[f"{name}, cost of keeping {half} of {rows['rank'].iloc[0]} directions"] = text
        evenness = rows.drop_duplicates("module")["evenness"].dropna()
        if len(evenness):
            summary[f"{name}, evenness of directions left out one at a time"] = (
                f"{evenness.median():.3g} (median of {len(evenness)} modules; 1: interchangeable)"
            )
    return summary


ANALYSIS = kit.Analysis(
    name="rank_curve",
    description=__doc__,
    question="how much of the loss does each rank hold, and are directions interchangeable?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=kit.Plot(draw, figure_table),
    summarize=summarize,
    reading="Top: loss above that of the whole adapter when k of its directions are kept, without "
    "rescaling: the first singular ones, the first trained ones, or random trained ones (band: "
    "95 % over examples; pale: single random orders). If trained directions were "
    "interchangeable, the pale lines and the prefix would lie on the random mean. Middle: exact "
    "match. Bottom: the share of each direction in the cost of a module, when it is left out "
    "alone, from the costliest on; interchangeable directions lie on the dotted line.",
    why_missing="it was omitted to save time",
    options={
        "points": kit.option(9, "kept ranks on a curve at most, from none to all"),
        "draws": kit.option(8, "random orders of the directions"),
        "left_out": kit.option(8, "modules whose directions are left out one at a time"),
        "examples": kit.option(64, "maximum number of examples"),
        "batch_size": kit.option(16, "examples in one forward pass"),
        "seed": kit.option(0, "seed of the random orders"),
        "dtype": kit.option("fp32", "what the model computes in", choices=("fp32", "bf16")),
    },
    position=75,
)
