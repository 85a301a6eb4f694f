"""Is a method better than LoRA? Scores of repeated runs, and their differences seed by seed.

    python -m analyses.paired_differences --runs "runs/methods/*" --out comparison

Reads what `python -m subspace_lab.evaluate` wrote into the runs about test examples. Runs that
differ in their seed only are repetitions of one configuration; base, data, length of training, the
way of evaluating and the test examples must be the same in all. Runs that were not evaluated are
named. Two measures, where the records have them: accuracy, and the loss of the right response in
nats per token (of `--metric exact_match`), which moves long before answers turn right.

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

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses._configurations import (
    check_same_problem,
    mask_settings,
    method_name,
    unusual_settings,
)
from analyses._scores import (
    ACCURACY,
    AVERAGE,
    LOSS,
    Scored,
    check_same_evaluation,
    excluded_runs,
    scored_groups,
)
from subspace_lab.errors import UserError, exit_code_2_on_user_error

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from subspace_lab.runs.run import Run

COLUMNS = [
    "configuration", "task", "measure", "mean", "low", "high", "seeds", "examples",
    "difference", "difference_low", "difference_high", "p_value", "examples_error", "paired_seeds",
]  # fmt: skip

Scores = Mapping[tuple[str, str, int], "NDArray[np.float64]"]


@dataclass(frozen=True)
class Configuration:
    """What one configuration's runs scored.

    Attributes:
        name: method, mask, and what else is unlike most configurations, in words.
        scores: values of the test examples, in order, for each (task, measure, seed).
    """

    name: str
    scores: Scores

    def seeds(self, task: str, measure: str) -> list[int]:
        """List the seeds that were scored."""
        return sorted(key[2] for key in self.scores if key[:2] == (task, measure))


def compute(runs: Sequence[Run], *, baseline: str = "LoRA") -> pd.DataFrame:
    """Compute means over seeds and paired differences to the baseline.

    Args:
        runs: recorded and evaluated runs; others are left out (see `remarks`).
        baseline: name of a configuration.

    Returns:
        One row per configuration, task (the last being their average, where all were scored) and
        measure (accuracy as a share, loss in nats per token): `mean` with its interval `low`,
        `high` over `seeds`, test `examples` (the fewest of a task), `difference` to the baseline
        with its interval and `p_value` over `paired_seeds`, and its standard error over test
        examples, `examples_error`. nan where a run diverged.

    Raises:
        UserError: if nothing was evaluated, the baseline is not there or shares no seed with
            another configuration, two runs have the same configuration and seed, or runs differ
            in problem, evaluation or test examples.
    """
    import pandas as pd

    known = {found.name: found for found in _configurations(runs)}
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
        keys = [key for found in known.values() for key in found.scores if key[1] == measure]
        tasks = list(dict.fromkeys(key[0] for key in keys))
        groups = [(task, [task]) for task in tasks] + [(AVERAGE, tasks)] * (len(tasks) > 1)
        for found in known.values():
            for title, members in groups:
                if mean := _mean(found, members, measure):
                    row = {"configuration": found.name, "task": title, "measure": measure, **mean}
                    if found.name != baseline:
                        row |= _difference(known[baseline], found, members, measure)
                    rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    if table["paired_seeds"].isna().all():
        raise UserError(
            f"nothing can be paired with {baseline}: give runs of another configuration that were "
            "evaluated on the same tasks and trained with the same seeds"
        )
    return table


def remarks(runs: Sequence[Run], *, baseline: str = "LoRA") -> list[str]:
    """Name the runs that are not compared, or not paired, and say why."""
    known = {found.name: found for found in _configurations(runs)}
    keys = list(dict.fromkeys(key[:2] for found in known.values() for key in found.scores))
    unpaired = [
        f"{found.name}, seed {', '.join(map(str, alone))}: not paired, since {baseline} has no "
        f"{measure} of {task} for that seed"
        for found in known.values()
        for task, measure in keys
        if measure == ACCURACY
        and (alone := set(found.seeds(task, measure)) - set(known[baseline].seeds(task, measure)))
    ]
    compared = {task for task, _ in keys}
    without_answers = {
        task
        for group in scored_groups(runs)
        for one in group
        for task in one.summaries
        if task not in compared
    }
    unknown = [
        f"{task}: its table does not say which examples are right"
        for task in sorted(without_answers)
    ]
    return [*excluded_runs(runs, on_all_tasks=True), *unpaired, *unknown]


def _configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Read the scores of all runs, one configuration after another."""
    groups = [(group, scores) for group in scored_groups(runs) if (scores := _read(group))]
    scored = [one for group, _ in groups for one in group]
    if scored:
        check_same_problem([one.run for one in scored])
        check_same_evaluation(scored)
    firsts = [group[0].run for group, _ in groups]
    with_rank = len({run.config.get("rank") for run in firsts}) > 1
    unusual = unusual_settings(firsts)
    return [
        Configuration(_name(run, unusual[run], with_rank=with_rank), scores)
        for run, (_, scores) in zip(firsts, groups, strict=True)
    ]


def _name(run: Run, unusual: str, *, with_rank: bool) -> str:
    mask = mask_settings(run.config) if run.mask_law is not None else ""
    rank = f"rank {run.config['rank']}" if with_rank else ""
    settings = ", ".join(filter(None, [rank, unusual, mask]))
    return method_name(run) + (f" ({settings})" if settings else "")


def _read(group: Sequence[Scored]) -> Scores:
    scores: dict[tuple[str, str, int], NDArray[np.float64]] = {}
    for one in group:
        seed = int(one.run.config["seed"])
        for task, summary in one.summaries.items():
            table = one.rows(task)
            if "correct" not in table:  # judged conversations have no right answer
                continue
            scores[task, ACCURACY, seed] = table["correct"].to_numpy(dtype=float)
            if summary["metric"] == "exact_match":  # else the loss is of what the model chose
                scores[task, LOSS, seed] = table["loss"].to_numpy(dtype=float)
    return scores


def _mean(found: Configuration, tasks: Sequence[str], measure: str) -> dict[str, Any]:
    """Average over tasks and then over seeds; empty if no seed was scored on all tasks."""
    from subspace_lab.stats.intervals import accuracy_over_seeds, mean_interval

    seeds = _common([found.seeds(task, measure) for task in tasks])
    if not seeds:
        return {}
    values = [_average([found.scores[task, measure, seed] for task in tasks]) for seed in seeds]
    examples = min(len(found.scores[task, measure, seed]) for task in tasks for seed in seeds)
    row = {"mean": float("nan"), "seeds": len(seeds), "examples": examples}
    if any(map(math.isnan, values)):
        return row
    interval = (
        accuracy_over_seeds(values, examples=examples)
        if measure == ACCURACY
        else mean_interval(values)
    )
    return row | {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def _difference(
    baseline: Configuration, found: Configuration, tasks: Sequence[str], measure: str
) -> dict[str, Any]:
    """Pair runs by seed, and their scores by example; empty where no seed is in both."""
    from subspace_lab.stats.intervals import all_alike, mean_interval
    from subspace_lab.stats.paired import sign_flip_test

    both = [one.seeds(task, measure) for one in (baseline, found) for task in tasks]
    seeds = _common(both)
    if not seeds:
        return {}
    # Of each task, the differences (seeds, examples).
    differences = [
        _of_seeds(found, task, measure, seeds) - _of_seeds(baseline, task, measure, seeds)
        for task in tasks
    ]
    by_seed = [_average([each[place] for each in differences]) for place in range(len(seeds))]
    # Tasks weigh equally, and their examples are independent samples.
    variance = sum(_variance_of_mean(each.mean(axis=0)) for each in differences)
    row = {
        "difference": float("nan"),
        "paired_seeds": len(seeds),
        "examples_error": variance**0.5 / len(tasks),
    }
    if any(map(math.isnan, by_seed)):
        return row
    interval = mean_interval(by_seed)
    row |= {"difference": interval.estimate, "p_value": sign_flip_test(by_seed).p_value}
    if not all_alike(by_seed):
        row |= {"difference_low": interval.low, "difference_high": interval.high}
    return row


def _of_seeds(
    found: Configuration, task: str, measure: str, seeds: Sequence[int]
) -> NDArray[np.float64]:
    import numpy as np

    return np.stack([found.scores[task, measure, seed] for seed in seeds])


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    """Estimate the variance of the mean of independent values (N,); nan for one."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else float("nan")


def _average(values: Sequence[NDArray[np.float64]]) -> float:
    return float(sum(each.mean() for each in values) / len(values))


def _common(seeds: Sequence[Sequence[int]]) -> list[int]:
    return sorted(set.intersection(*map(set, seeds)))


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line, and print and write the tables and the figure."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.paired_differences",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", nargs="+", required=True, help="run directories, or quoted globs")
    parser.add_argument("--baseline", default="LoRA", help="the configuration to compare with")
    parser.add_argument("--out", type=Path, default=Path("paired-differences"), help="a folder")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="pdf", help="of figures")
    arguments = parser.parse_args()
    from analyses._paired_layout import as_markdown, plot
    from analyses.kit import write_comparison
    from subspace_lab.runs.opening import open_runs

    runs = open_runs(arguments.runs)
    table = compute(runs, baseline=arguments.baseline)
    excluded = remarks(runs, baseline=arguments.baseline)
    text = as_markdown(table, baseline=arguments.baseline, remarks=excluded)
    print(text)
    name = "paired_differences"
    figures = {name: plot(table, baseline=arguments.baseline)}
    write_comparison(arguments.out, name, table, text, figures, arguments.format)


if __name__ == "__main__":
    main()
