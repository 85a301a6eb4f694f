"""How do methods differ from LoRA, seed by seed? At equal learning rates, and each at its own.

    python -m analyses.paired_differences --run "runs/methods/*" --out comparison

Reads what `python -m subspace_lab.evaluate` wrote into the runs about test examples; where none was
evaluated, what their training scored after its last step (`--test_size`). Runs that differ in their
seed only are repetitions of one configuration, and those that differ in `--mask_seed` alone are one
repetition, which scores their mean (with masks in all runs and the other seeds equal, each is one).
Base, data, length of training, evaluation settings and the test examples must be the same in all.
Runs without scores are listed. Three measures, where the records have them: accuracy, the loss of
the right response in nats per token (of `--metric exact_match`), which changes long before answers
turn right, and that loss at the temperature that validation examples chose (of training).

A mean's interval is Student's t over seeds (95 %), for accuracies within 0 and 100 %; where all
seeds have the same accuracy, such as 0 %, it is Wilson's interval over the test examples. The
difference to the baseline pairs runs of one seed, which trained on the same examples in the same
order, example by example; its interval and its p-value (sign-flip test) are over seeds. Where all
seeds have the same difference it has no interval, since their spread says nothing. With n seeds
that p-value is at least 2 / 2^n, 0.25 for three, so three seeds can never reach significance. The
standard error over test examples says what other test examples could have changed, the seeds being
fixed. Nothing is corrected for many comparisons.

A difference at equal learning rate does not say which method is better, since methods have
different best rates. Where runs have several rates, each method's own is the one with the best mean
on the validation examples of its training, by the measure that is compared, and the methods are
also compared at their own rates; `analyses.learning_rates` has the whole curves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from analyses import kit
from analyses.comparisons.configurations import COLUMNS as SETTINGS
from analyses.comparisons.pairing import (
    DIFFERENCE_COLUMNS,
    MEAN_COLUMNS,
    Seeds,
    read_configurations,
    tasks_scored,
    tasks_without_answers,
)
from analyses.comparisons.rates import (
    OWN,
    Methods,
    by_method,
    check_baseline,
    compare,
    several_rates,
)
from analyses.comparisons.scores import ACCURACY, AVERAGE, MEASURES, excluded_runs
from analyses.paired_differences.layout import as_markdown, draw, over_all_tasks
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

COLUMNS = [
    "configuration", "method", *SETTINGS, "learning_rate", "rates", "task", "measure",
    *MEAN_COLUMNS, "baseline", "baseline_rate", *DIFFERENCE_COLUMNS,
]  # fmt: skip


def compute(runs: Sequence[Run], *, baseline: str = "LoRA") -> pd.DataFrame:
    """Compute means over seeds and paired differences to the baseline.

    `baseline` is the name of a configuration, without its learning rate. Runs without scores are
    excluded.

    Returns:
        One row per configuration (its name, and its settings in columns of their own), task (the
        last being their average, where all were scored) and measure (accuracy as a share, loss in
        nats per token): `mean` with its interval `low`, `high` over `seeds`, test `examples` (the
        fewest of a task), `difference` to the `baseline` with its interval and `p_value` over
        `paired_seeds`, and its standard error over test examples, `examples_error`. nan where a run
        diverged. `rates` is `equal` where both have the same `learning_rate`, and `own` where each
        has its own, the baseline `baseline_rate`. The attribute `remarks` lists the runs that are
        not compared, or not paired.

    Raises:
        UserError: if nothing was evaluated, the baseline is not there or shares no seed with
            another configuration, two runs have the same configuration and seed, or runs differ
            in problem, evaluation or test examples.
    """
    configurations = read_configurations(runs)
    methods = by_method(configurations)
    if not methods:
        raise UserError(
            "none of these runs of subspace_lab.train was evaluated on test examples: run "
            "python -m subspace_lab.evaluate --run RUN --tasks TASK for each, or train with "
            "--test_size"
        )
    check_baseline(methods, baseline)
    rows = []
    for measure in MEASURES:
        tasks = tasks_scored(configurations, measure)
        groups = [(task, [task]) for task in tasks] + [(AVERAGE, tasks)] * (len(tasks) > 1)
        for title, members in groups:
            compared = compare(methods, baseline, members, measure)
            rows += [row | {"task": title, "measure": measure} for row in compared]
    table = pd.DataFrame(rows, columns=COLUMNS).assign(baseline=baseline)
    if table["paired_seeds"].isna().all():
        raise UserError(
            f"nothing can be paired with {baseline}: give runs of another configuration that were "
            "evaluated on the same tasks and trained with the same seeds and learning rate"
        )
    if several_rates(methods):
        rates = table["learning_rate"].map("{:g}".format)
        table["configuration"] += " at " + rates.where(table["rates"] != OWN, "its own rate")
    table.attrs["remarks"] = _remarks(runs, methods, baseline)
    return table


def _remarks(runs: Sequence[Run], methods: Methods, baseline: str) -> list[str]:
    """List the runs that are not compared, or not paired, and say why."""
    known = [one for of_rates in methods.values() for one in of_rates.values()]
    tasks = dict.fromkeys(key[0] for one in known for key in one.scores)
    unpaired = []
    for one in known:
        other = methods[baseline].get(one.learning_rate)
        if other is None:
            unpaired.append(
                f"{one.method} at learning rate {one.learning_rate:g}: not paired at equal rate, "
                f"since {baseline} has no runs at it"
            )
            continue
        unpaired += [
            f"{one.method}, seed {_text(alone)}: not paired, since "
            f"{baseline} has no {ACCURACY} of {task} for that seed"
            for task in tasks
            if (alone := set(one.seeds(task, ACCURACY)) - set(other.seeds(task, ACCURACY)))
        ]
    unknown = [
        f"{task}: its table does not say which examples are right"
        for task in tasks_without_answers(runs, tasks)
    ]
    return [*excluded_runs(runs, on_all_tasks=True), *unpaired, *unknown]


def _text(seeds: Collection[Seeds]) -> str:
    return ", ".join("/".join(map(str, one)) for one in sorted(seeds))


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the paired differences to the baseline, over all tasks where all were scored."""
    rows = over_all_tasks(table)
    names = rows["configuration"] + ", " + rows["task"] + ", " + rows["measure"]
    numbers = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    return kit.summary_by(names, rows, **numbers, p_value="p_value")


ANALYSIS = kit.Analysis(
    name="paired_differences",
    description=__doc__,
    question="how do methods differ from LoRA, seed by seed, at equal rates and each at its own?",
    needs=kit.Needs(0),
    compute=compute,
    plot=kit.Plot(draw),
    summarize=summarize,
    texts={"md": as_markdown},
    options={"baseline": kit.option("LoRA", "the configuration to compare with")},
    reading="Each mark is the mean over seeds of a method's score minus the baseline's, on the "
    "same test examples after training on the same data in the same order; the bar is its 95 % "
    "interval over seeds. At equal learning rates the method whose best rate is nearer wins, so "
    "what counts is each at its own rate.",
    compares=True,
    selects=False,
    csv=True,
    position=110,
)
