"""What each configuration scored, its mean over seeds, and its difference to another's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyses.comparisons.configurations import check_same_problem, describe, settings_text
from analyses.comparisons.scores import (
    ACCURACY,
    CALIBRATED,
    LOSS,
    Scored,
    check_same_evaluation,
    last_validation,
    scored_groups,
)
from subspace_lab.configurations import seeds_in_effect
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_over_seeds, all_alike, mean_interval
from subspace_lab.stats.paired import sign_flip_test

Seeds = tuple[int, ...]
"""What tells repetitions of a configuration apart: the seed, or several of them."""
Scores = Mapping[tuple[str, str, Seeds], NDArray[np.float64]]
"""Values of the test examples, in order, for each (task, measure, seeds)."""
VALIDATED = {
    ACCURACY: "eval_exact_match",
    LOSS: "eval_response_loss",
    CALIBRATED: "validation_calibrated_loss",
}
"""Columns of a run's metrics on validation examples by measure."""
MEAN_COLUMNS = ["mean", "low", "high", "seeds", "examples"]
DIFFERENCE_COLUMNS = [
    "difference", "difference_low", "difference_high", "p_value", "examples_error", "paired_seeds",
]  # fmt: skip
"""Columns of what `mean_of` and `difference_of` give."""


@dataclass(frozen=True)
class Configuration:
    """What one configuration's runs scored.

    Attributes:
        settings: the method and what else tells configurations apart, but the learning rate.
        method: the same in words.
        learning_rate: the peak rate; nan where it is not known.
        scores: of its runs on test examples; of runs that were scored in training only the mean.
        validation: of its runs after their last step, on the validation examples of their training:
            the mean of each (measure, seeds), nan where the run diverged.
        examples: the fewest test examples of a run, by task.
    """

    settings: Mapping[str, Any]
    method: str
    learning_rate: float
    scores: Scores
    validation: Mapping[tuple[str, Seeds], float]
    examples: Mapping[str, int]

    def seeds(self, task: str, measure: str) -> list[Seeds]:
        """List the seeds that were scored."""
        return sorted(key[2] for key in self.scores if key[:2] == (task, measure))

    def of_seeds(self, task: str, measure: str, seeds: Sequence[Seeds]) -> NDArray[np.float64]:
        """Stack scores to (seeds, examples)."""
        return np.stack([self.scores[task, measure, seed] for seed in seeds])


def read_configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Read the scores of all runs, one configuration after another.

    Configurations of one `method` differ in their learning rate only. Runs that differ in the
    `mask_seed` alone are one repetition, which scores their mean; where all runs have masks and
    share the other seeds, each is a repetition.

    Raises:
        UserError: if runs differ in problem, evaluation or test examples.
    """
    groups = read_groups(runs)
    repeated = repetitions([one.run for *_, group in groups for one in group])
    return [_configuration(*group, repeated) for group in groups]


def _configuration(
    name: str, settings: Mapping[str, Any], group: Sequence[Scored], repeated: Mapping[Run, Seeds]
) -> Configuration:
    scores = [
        ((task, measure, repeated[one.run]), values)
        for one in group
        for task in one.summaries
        for measure, values in one.values(task).items()
    ]
    validation = [
        ((measure, repeated[one.run]), float(last[column]))
        for one in group
        if (last := last_validation(one.run)) is not None
        for measure, column in VALIDATED.items()
        if column in last
    ]
    examples = {
        task: min(one.count(task) for one in group if task in one.summaries)
        for task in {task for one in group for task in one.summaries}
    }
    rate = float(group[0].run.config.get("learning_rate", math.nan))
    return Configuration(settings, name, rate, _means(scores), _means(validation), examples)


def _means(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Average the values of each key, in the order of the keys."""
    values: dict[Any, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: np.mean(of_key, axis=0) for key, of_key in values.items()}


def read_groups(runs: Sequence[Run]) -> list[tuple[str, dict[str, Any], list[Scored]]]:
    """Read the scored runs of each configuration, with its name and settings by column.

    The learning rate, in which configurations may differ, too, is not among them.

    Raises:
        UserError: if runs differ in problem, evaluation or test examples.
    """
    groups = [
        group
        for group in scored_groups(runs)
        if any(one.values(task) for one in group for task in one.summaries)
    ]
    if not groups:
        return []
    scored = [one for group in groups for one in group]
    check_same_problem([one.run for one in scored])
    check_same_evaluation(scored)
    settings = describe([group[0].run for group in groups], but=["learning_rate"])
    with_rank = len({one["rank"] for one in settings if one["rank"]}) > 1
    return [
        (name_of(one, with_rank=with_rank), one, group)
        for one, group in zip(settings, groups, strict=True)
    ]


def repetitions(runs: Sequence[Run]) -> dict[Run, Seeds]:
    """Give the seeds that a run is known by; its `seed` alone where the others are the same."""
    seeds = {run: seeds_in_effect(run.config) for run in runs}
    masks = [of_run.pop("mask", None) for of_run in seeds.values()]
    others = {run: tuple(of_run.values()) for run, of_run in seeds.items()}
    if None not in masks and len(set(others.values())) == 1 < len(set(masks)):
        return {run: (mask,) for run, mask in zip(runs, masks, strict=True) if mask is not None}
    return {run: one[:1] if len(set(one)) == 1 else one for run, one in others.items()}


def name_of(settings: Mapping[Any, Any], *, with_rank: bool) -> str:
    """Name a configuration by its method and what else tells it apart."""
    text = settings_text(settings, with_rank=with_rank)
    return f"{settings['method']} ({text})" if text else str(settings["method"])


def tasks_scored(configurations: Iterable[Configuration], measure: str) -> list[str]:
    """List the tasks of which a measure is known, in the order of the configurations."""
    keys = (key for one in configurations for key in one.scores if key[1] == measure)
    return list(dict.fromkeys(key[0] for key in keys))


def tasks_without_answers(runs: Sequence[Run], compared: Collection[str]) -> list[str]:
    """List the evaluated tasks of which nothing is compared, sorted."""
    scored = (one for group in scored_groups(runs) for one in group)
    return sorted({task for one in scored for task in one.summaries} - set(compared))


def mean_of(configuration: Configuration, tasks: Sequence[str], measure: str) -> dict[str, Any]:
    """Average over tasks and then over seeds; empty if no seed was scored on all tasks."""
    seeds = _common([configuration.seeds(task, measure) for task in tasks])
    if not seeds:
        return {}
    scores = [[configuration.scores[task, measure, seed] for seed in seeds] for task in tasks]
    values = _average(scores)
    examples = min(configuration.examples[task] for task in tasks)
    row = {"mean": math.nan, "seeds": len(seeds), "examples": examples}
    if any(map(math.isnan, values)):
        return row
    interval = mean_interval(values)
    if measure == ACCURACY:
        interval = accuracy_over_seeds(values, examples=examples)
    return row | {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def difference_of(
    baseline: Configuration, other: Configuration, tasks: Sequence[str], measure: str
) -> dict[str, Any]:
    """Pair runs by seed, and their scores by example; empty where no seed is in both."""
    seeds = _common([one.seeds(task, measure) for one in (baseline, other) for task in tasks])
    if not seeds:
        return {}
    differences = [
        other.of_seeds(task, measure, seeds) - baseline.of_seeds(task, measure, seeds)
        for task in tasks
    ]
    by_seed = _average([list(of_task) for of_task in differences])
    # Tasks weigh equally, and their examples are independent samples.
    variance = sum(_variance_of_mean(of_task.mean(axis=0)) for of_task in differences)
    error = variance**0.5 / len(tasks)
    row = {"difference": math.nan, "paired_seeds": len(seeds), "examples_error": error}
    if any(map(math.isnan, by_seed)):
        return row
    interval = mean_interval(by_seed)
    row |= {"difference": interval.estimate, "p_value": sign_flip_test(by_seed).p_value}
    if not all_alike(by_seed):
        row |= {"difference_low": interval.low, "difference_high": interval.high}
    return row


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    """Estimate the variance of the mean of independent values (N,); nan for one."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def _average(scores: Sequence[Sequence[NDArray[np.float64]]]) -> list[float]:
    """Average tasks' scores, of each seed an array (examples,), by seed; tasks weigh equally."""
    means = np.array([[of_seed.mean() for of_seed in of_task] for of_task in scores])
    values: list[float] = means.mean(axis=0).tolist()
    return values


def _common(seeds: Sequence[Sequence[Seeds]]) -> list[Seeds]:
    return sorted(set.intersection(*map(set, seeds)))
