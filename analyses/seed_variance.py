"""How much of a score's spread is due to which seed: data, first weights, masks, label noise?

    python -m analyses.seed_variance --run "runs/sweep/*"

A run's seeds decide its data and their order, its first weights, its masks and its label noise,
each apart where `--data_seed`, `--init_seed`, `--mask_seed` or `--noise_seed` is given; `seed` is
what remains, such as input dropout. Of all pairs of runs of one configuration that differ in the
same seeds, half the mean squared difference of their scores estimates without bias the variance
that redrawing these seeds makes, the others being held fixed. Effects that add up have variances
that add up; what the single ones lack of the variance of all together is due to their interaction.
The scores are those that `paired_differences` compares. A variance from few runs is uncertain: of
n runs that differ in all pairs it has a relative standard error of about sqrt(2 / (n - 1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from analyses import kit
from analyses.comparisons.pairing import read_groups
from analyses.comparisons.scores import excluded_runs
from analyses.comparisons.texts import remarks_text
from subspace_lab.configurations import seeds_in_effect
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

ORDER = ("data", "init", "mask", "noise", "seed")
COLUMNS = [
    "configuration", "method", "learning_rate", "task", "measure", "seeds", "variance",
    "standard_deviation", "share", "pairs", "runs",
]  # fmt: skip


def compute(runs: Sequence[Run]) -> pd.DataFrame:
    """Estimate the variance of scores by the seeds that differ.

    Runs without scores on test examples are excluded.

    Returns:
        A row is a configuration, learning rate, task, measure and set of `seeds`, joined by "+":
        the `variance` of the score (accuracy as a share, losses in nats per token), its root
        `standard_deviation`, its `share` of the variance where the most seeds differ, and the
        `pairs` and `runs` that it rests on.

    Raises:
        UserError: if no two runs of one configuration have scores, or runs differ in problem,
            evaluation or test examples.
    """
    rows: list[dict[str, Any]] = []
    for name, settings, group in read_groups(runs):
        of_group = {
            "configuration": name,
            "method": settings["method"],
            "learning_rate": group[0].run.config.get("learning_rate"),
        }
        scores: dict[tuple[str, str], dict[Run, float]] = {}
        for one in group:
            for task in one.summaries:
                for measure, values in one.values(task).items():
                    scores.setdefault((task, measure), {})[one.run] = float(values.mean())
        for (task, measure), by_run in scores.items():
            shown = of_group | {"task": task, "measure": measure}
            rows += [shown | row for row in _variances(by_run)]
    if not rows:
        raise UserError(
            "no two of these runs repeat a configuration and have scores on test examples: train "
            "several seeds with --test_size, or run python -m subspace_lab.evaluate"
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["remarks"] = excluded_runs(runs, on_all_tasks=False)
    return table


def _variances(scores: dict[Run, float]) -> list[dict[str, Any]]:
    """Average half the squared differences of pairs that differ in the same seeds."""
    pairs: dict[tuple[str, ...], list[tuple[Run, Run]]] = {}
    for first, second in combinations(scores, 2):
        one, other = (seeds_in_effect(run.config) for run in (first, second))
        differing = tuple(name for name in ORDER if one.get(name) != other.get(name))
        pairs.setdefault(differing, []).append((first, second))
    variances = {
        differing: sum((scores[one] - scores[other]) ** 2 / 2 for one, other in alike) / len(alike)
        for differing, alike in pairs.items()
    }
    most = variances[max(variances, key=len)] if variances else 0.0
    return [
        {
            "seeds": "+".join(differing),
            "variance": variances[differing],
            "standard_deviation": variances[differing] ** 0.5,
            "share": variances[differing] / most if most else float("nan"),
            "pairs": len(pairs[differing]),
            "runs": len({run for pair in pairs[differing] for run in pair}),
        }
        for differing in sorted(variances, key=lambda names: (len(names), names))
    ]


def as_markdown(table: pd.DataFrame) -> str:
    """Write a line for each row."""
    shown = [column for column in COLUMNS if column not in ("method", "variance")]
    cells = table[shown].assign(
        standard_deviation=table["standard_deviation"].map("{:.4g}".format),
        share=table["share"].map("{:.2f}".format),
    )
    lines = kit.markdown_table([[*map(str, cells)], *cells.astype(str).to_numpy().tolist()])
    return "\n\n".join([lines, *remarks_text(table)]) + "\n"


def draw(table: pd.DataFrame, page: kit.Page) -> None:
    """Draw the standard deviations by the seeds that differ, a panel for each measure and task."""
    several = table["task"].nunique() > 1
    panels = {
        f"{measure}, {task}" if several else str(measure): rows
        for (measure, task), rows in table.groupby(["measure", "task"], sort=False)
    }
    names = sorted(table["seeds"].unique(), key=lambda name: (name.count("+"), name))
    things = table["configuration"] + " at " + table["learning_rate"].astype(str)
    axes = page.panels(list(panels), row_height=1.1, share_x=True)
    for panel, axis in axes.items():
        rows = panels[panel]
        for place, thing in enumerate(dict.fromkeys(things)):
            of_thing = rows[things[rows.index] == thing]
            x = of_thing["seeds"].map(names.index) + 0.7 * ((place + 0.5) / things.nunique() - 0.5)
            style = page.style(thing)
            axis.plot(x, of_thing["standard_deviation"], linestyle="", label=thing, **style)
        axis.set_xticks(range(len(names)), [name.replace("+", "\n+ ") for name in names])
        axis.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.15 * rows["standard_deviation"].max()))
        axis.set_ylabel("deviation")
        page.set_title(axis, panel.replace("_", " "))
    runs = f"at most {table['runs'].max()} runs"
    page.title(f"Standard deviation of a score by the seeds that differ\n{runs}")
    page.legend(axes)


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the standard deviations by the seeds that differ."""
    things = table["configuration"] + " at " + table["learning_rate"].astype(str)
    names = things + ", " + table["task"] + ", " + table["measure"] + ", " + table["seeds"]
    return dict(zip(names, table["standard_deviation"].tolist(), strict=True))


ANALYSIS = kit.Analysis(
    name="seed_variance",
    description=__doc__,
    question="how much of a score's spread is due to which seed: data, first weights, masks, "
    "label noise?",
    needs=kit.Needs(0),
    compute=compute,
    plot=kit.Plot(draw),
    summarize=summarize,
    texts={"md": as_markdown},
    compares=True,
    selects=False,
    csv=True,
    position=112,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
