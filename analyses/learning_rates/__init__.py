"""Which learning rate suits each method, and what would a comparison at one rate have said?

    python -m subspace_lab.sweep --config learning-rates --out runs/learning-rates --jobs 2
    python -m subspace_lab.evaluate --run "runs/learning-rates/*" --tasks flip \
        --metric exact_match --examples 300
    python -m analyses.learning_rates --run "runs/learning-rates/*"

Without the second command the test scores of training are read (`--test_size 300` in the sweep).
Runs that differ in their learning rate and seed only are one method. For each method and rate: the
mean over seeds on test examples with its 95 % interval, and the difference to the baseline at the
same rate, paired by seed. Each method's own rate is the one with the best mean on the validation
examples of its training, after the last step, by the measure that is compared (accuracy, loss, or
loss at the validated temperature); the methods are then compared on test examples each at its own
rate. The ratio of their rates is known to within the grid's spacing, and a best rate at the edge of
the grid may not be the best.

Intervals are Student's t over seeds, and do not cover the choice of the rate: it is made with the
same runs, on other examples. Nothing is corrected for many comparisons; of three seeds a sign-flip
p-value is at least 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses import kit
from analyses.comparisons.configurations import COLUMNS as SETTINGS
from analyses.comparisons.pairing import (
    DIFFERENCE_COLUMNS,
    MEAN_COLUMNS,
    read_configurations,
    tasks_scored,
)
from analyses.comparisons.rates import (
    OWN,
    Methods,
    by_method,
    check_baseline,
    compare,
    several_rates,
    validated_seeds,
    without_own_rate,
)
from analyses.comparisons.scores import ACCURACY, MEASURES, excluded_runs
from analyses.learning_rates.figure import draw
from analyses.learning_rates.layout import as_markdown
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

COLUMNS = [
    "configuration", "method", *SETTINGS, "measure", "rates", "learning_rate", "validation",
    *MEAN_COLUMNS, "baseline", "baseline_rate", "rate_ratio", "lowest_rate", "highest_rate",
    "at_edge", *DIFFERENCE_COLUMNS,
]  # fmt: skip


def compute(runs: Sequence[Run], *, baseline: str = "LoRA") -> pd.DataFrame:
    """Compare methods at equal learning rates, and each at its own.

    `baseline` is the name of a configuration, without its learning rate. Runs without scores on
    test examples are excluded.

    Returns:
        One row per configuration (its name, and its settings in columns of their own),
        `learning_rate` and measure (accuracy as a share, loss in nats per token; of several tasks
        their average), with `rates` equal; and one at its own rate, with `rates` own. Of each the
        mean over `seeds` on test `examples` with its interval `low`, `high`, the mean on
        `validation` examples, and the `difference` to the `baseline` at the same rate, or at its
        own `baseline_rate`, with interval and `p_value` over `paired_seeds`. Of own rates also
        their ratio to the baseline's, `rate_ratio`, the `lowest_rate` and `highest_rate` that
        single seeds would have chosen, and whether it is the lowest or highest of the grid,
        `at_edge`. nan where a run diverged. The attribute `remarks` lists the runs that are not
        compared, and methods without a choice of rates.

    Raises:
        UserError: if nothing was evaluated, there is one learning rate only, the baseline is not
            there or has no choice of rates, two runs have the same configuration and seed, or runs
            differ in problem, evaluation or test examples.
    """
    configurations = read_configurations(runs)
    if not configurations:
        raise UserError(
            "none of these runs of subspace_lab.train was evaluated on test examples: run "
            'python -m subspace_lab.evaluate --run "RUNS/*" --tasks TASK --metric exact_match'
        )
    methods = by_method(configurations)
    _check(methods, baseline)
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        if tasks := tasks_scored(configurations, measure):
            for row in compare(methods, baseline, tasks, measure):
                of_rates = methods[row["configuration"]]
                known = of_rates[row["learning_rate"]].validation
                # The mean over the seeds by which the method's rates are compared.
                scores = [known[measure, seed] for seed in validated_seeds(of_rates, measure)]
                validation = sum(scores) / len(scores) if scores else math.nan
                rows.append(row | {"measure": measure, "validation": validation})
    table = pd.DataFrame(rows, columns=COLUMNS).assign(baseline=baseline)
    table["at_edge"] = table["at_edge"].astype("boolean")
    reasons = without_own_rate(methods, ACCURACY)
    table.attrs["remarks"] = [
        *excluded_runs(runs, on_all_tasks=True),
        *(f"{method} at its own rate: {reason}" for method, reason in reasons.items()),
    ]
    return table


def _check(methods: Methods, baseline: str) -> None:
    if not several_rates(methods):
        (rate,) = {rate for of_rates in methods.values() for rate in of_rates}
        raise UserError(
            f"all runs have the learning rate {rate:g}: train others, too, such as with `python -m "
            "subspace_lab.sweep --config learning-rates`"
        )
    check_baseline(methods, baseline)
    if reason := without_own_rate(methods, ACCURACY).get(baseline):
        raise UserError(
            f"no learning rate of {baseline} can be chosen, since {reason}: train it at several, "
            "with `eval_split` validation"
        )


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each method's own rate and score, and its difference to the baseline at its own."""
    rows = table[table["rates"] == OWN]
    rates = {"own_rate": "learning_rate", "ratio": "rate_ratio", "test": "mean"}
    numbers = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    return kit.summary_by(rows["configuration"] + ", " + rows["measure"], rows, **rates, **numbers)


ANALYSIS = kit.Analysis(
    name="learning_rates",
    description=__doc__,
    question="which learning rate suits each method, and what would one rate have said?",
    needs=kit.Needs(0),
    compute=compute,
    plot=kit.Plot(draw),
    summarize=summarize,
    texts={"md": as_markdown},
    options={"baseline": kit.option("LoRA", "the configuration to compare with")},
    reading="Scores over the learning rate: at one rate a method can be ahead that is behind with "
    "each at its own, the rate of the best mean on validation examples.",
    compares=True,
    selects=False,
    csv=True,
    position=105,
)
