"""Is a method better than LoRA? Scores of repeated runs, and their differences seed by seed.

    python -m analyses.paired_differences --run "runs/methods/*" --out comparison

Reads what `python -m subspace_lab.evaluate` wrote into the runs about test examples. Runs that
differ in their seed only are repetitions of one configuration; base, data, length of training,
evaluation settings and the test examples must be the same in all. Runs that were not evaluated are
listed. Two measures, where the records have them: accuracy, and the loss of the right response in
nats per token (of `--metric exact_match`), which changes long before answers turn right.

A mean's interval is Student's t over seeds (95 %), for accuracies within 0 and 100 %; where all
seeds have the same accuracy, such as 0 %, it is Wilson's interval over the test examples. The
difference to the baseline pairs runs of one seed, which trained on the same examples in the same
order, example by example; its interval and its p-value (sign-flip test) are over seeds. Where all
seeds have the same difference it has no interval, since their spread says nothing. With n seeds
that p-value is at least 2 / 2^n, 0.25 for three, so three seeds can never reach significance. The
standard error over test examples says what other test examples could have changed, the seeds being
fixed. Nothing is corrected for many comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses import kit
from analyses.comparisons.configurations import COLUMNS as SETTINGS
from analyses.comparisons.scores import ACCURACY, AVERAGE, LOSS, excluded_runs
from analyses.paired_differences.layout import as_markdown, draw, over_all_tasks
from analyses.paired_differences.pairing import (
    Configuration,
    difference_of,
    mean_of,
    read_configurations,
    tasks_without_answers,
)
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

COLUMNS = [
    "configuration", "method", *SETTINGS, "task", "measure", "mean", "low", "high", "seeds",
    "examples", "baseline", "difference", "difference_low", "difference_high", "p_value",
    "examples_error", "paired_seeds",
]  # fmt: skip


def compute(runs: Sequence[Run], *, baseline: str = "LoRA") -> pd.DataFrame:
    """Compute means over seeds and paired differences to the baseline.

    Args:
        runs: recorded and evaluated runs; others are excluded.
        baseline: name of a configuration.

    Returns:
        One row per configuration (its name, and its settings in columns of their own), task (the
        last being their average, where all were scored) and measure (accuracy as a share, loss in
        nats per token): `mean` with its interval `low`, `high` over `seeds`, test `examples` (the
        fewest of a task), `difference` to the `baseline` with its interval and `p_value` over
        `paired_seeds`, and its standard error over test examples, `examples_error`. nan where a run
        diverged. The attribute `remarks` lists the runs that are not compared, or not paired.

    Raises:
        UserError: if nothing was evaluated, the baseline is not there or shares no seed with
            another configuration, two runs have the same configuration and seed, or runs differ
            in problem, evaluation or test examples.
    """
    known = {one.name: one for one in read_configurations(runs)}
    if not known:
        raise UserError(
            "none of these runs of subspace_lab.train was evaluated on test examples: run "
            "python -m subspace_lab.evaluate --run RUN --tasks TASK for each"
        )
    if baseline not in known:
        raise UserError(
            f"there is no configuration {baseline!r}: give --baseline one of {', '.join(known)}"
        )
    rows = []
    for measure in (ACCURACY, LOSS):
        keys = [key for one in known.values() for key in one.scores if key[1] == measure]
        tasks = list(dict.fromkeys(key[0] for key in keys))
        groups = [(task, [task]) for task in tasks] + [(AVERAGE, tasks)] * (len(tasks) > 1)
        for one in known.values():
            place = {"configuration": one.name, **one.settings, "baseline": baseline}
            for title, members in groups:
                if mean := mean_of(one, members, measure):
                    row = place | {"task": title, "measure": measure, **mean}
                    if one.name != baseline:
                        row |= difference_of(known[baseline], one, members, measure)
                    rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    if table["paired_seeds"].isna().all():
        raise UserError(
            f"nothing can be paired with {baseline}: give runs of another configuration that were "
            "evaluated on the same tasks and trained with the same seeds"
        )
    table.attrs["remarks"] = _remarks(runs, known, baseline)
    return table


def _remarks(runs: Sequence[Run], known: dict[str, Configuration], baseline: str) -> list[str]:
    """List the runs that are not compared, or not paired, and say why."""
    tasks = dict.fromkeys(key[0] for one in known.values() for key in one.scores)
    unpaired = [
        f"{one.name}, seed {', '.join(map(str, sorted(alone)))}: not paired, since {baseline} has "
        f"no {ACCURACY} of {task} for that seed"
        for one in known.values()
        for task in tasks
        if (alone := set(one.seeds(task, ACCURACY)) - set(known[baseline].seeds(task, ACCURACY)))
    ]
    unknown = [
        f"{task}: its table does not say which examples are right"
        for task in tasks_without_answers(runs, tasks)
    ]
    return [*excluded_runs(runs, on_all_tasks=True), *unpaired, *unknown]


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the paired differences to the baseline, over all tasks where all were scored."""
    return {
        f"{row['configuration']}, {row['task']}, {row['measure']}": {
            "difference": row["difference"],
            "low": row["difference_low"],
            "high": row["difference_high"],
            "p_value": row["p_value"],
        }
        for row in over_all_tasks(table).to_dict(orient="records")
    }


ANALYSIS = kit.Analysis(
    name="paired_differences",
    description=__doc__,
    question="is a method better than LoRA, seed by seed?",
    needs=kit.Needs(0),
    compute=compute,
    plot=kit.Plot(draw),
    summarize=summarize,
    texts={"md": as_markdown},
    on_screen=as_markdown,
    options={"baseline": {"default": "LoRA", "help": "the configuration to compare with"}},
    compares=True,
    selects=False,
    csv=True,
    position=110,
)
