"""Differences between masked and LoRA runs, paired by seed; with each at its own rate, too.

Its own is the learning rate that validation examples choose.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analyses.comparisons.pairing import Configuration, read_configurations, tasks_scored
from analyses.comparisons.rates import by_method, own_rate
from analyses.comparisons.scores import ACCURACY
from subspace_lab.configurations import MASK, METHOD, identity, label_configurations, without_seed
from subspace_lab.runs.run import Run
from subspace_lab.stats.paired import PairedDifference, paired_difference

RATE = "learning_rate"
LEVEL = 0.05  # probability that any of a claim's comparisons is called a difference by chance


@dataclass(frozen=True)
class Measurement:
    """A number about a run.

    Attributes:
        value: the number.
        conditions: how it was measured; only numbers measured alike are compared.
    """

    value: float
    conditions: str


@dataclass(frozen=True)
class Difference:
    """Masked runs minus LoRA runs of the same configuration, seed by seed.

    Attributes:
        label: the masked configuration.
        quantity: what is compared.
        by_seed: difference by seed.
        conditions: how both were measured.
        config: a masked run's configuration.
    """

    label: str
    quantity: str
    by_seed: Mapping[Hashable, float]
    conditions: str
    config: Mapping[str, Any]

    @cached_property
    def difference(self) -> PairedDifference:
        """The mean over seeds, with interval and test."""
        return paired_difference(dict.fromkeys(self.by_seed, 0.0), self.by_seed)

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(self.difference.difference.estimate)

    @property
    def p_value(self) -> float:
        """Of the sign-flip test, not corrected for other comparisons."""
        return self.difference.test.p_value

    @property
    def seeds(self) -> int:
        """How many seeds were paired."""
        return len(self.by_seed)

    def __str__(self) -> str:
        """Give the difference with its evidence."""
        interval = self.difference.difference
        text = f"{self.label}: {self.estimate:+.3f} {self.quantity} against LoRA ("
        if self.seeds > 1:
            text += f"95 % interval {interval.low:+.3f} to {interval.high:+.3f}, "
            text += f"p = {self.p_value:.2g}, "
        return text + f"{self.seeds} paired seed{'s' * (self.seeds > 1)}, {self.conditions})"


def seeds_needed(comparisons: int) -> int:
    """Smallest number of seeds at which Holm's correction lets a sign-flip test reach the level.

    Of n seeds the smallest p-value is 2 / 2^n, and it is multiplied by the number of comparisons.

    >>> [seeds_needed(k) for k in (1, 2, 4, 8)]
    [6, 7, 8, 9]
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) / LEVEL))


def with_enough_seeds(differences: Sequence[Difference]) -> list[Difference]:
    """Keep those that a test of all of them together could call a difference."""
    wanted = seeds_needed(len(differences))
    return [difference for difference in differences if difference.seeds >= wanted]


def own_rate_gains(
    masked: Sequence[Run], lora: Sequence[Run], *, at_loras: bool = False
) -> list[Difference]:
    """Compare accuracies on test examples of masked runs and LoRA, each at its own rate.

    Args:
        masked: masked runs, at several learning rates; those of `method` droplora count.
        lora: runs of plain LoRA; those count that differ from a masked one in mask, rate and seed
            only.
        at_loras: compare both at LoRA's own rate.

    Returns:
        A difference for each masked configuration, whatever its rate, of which both sides have a
        choice of rates and scores on test examples.

    Raises:
        UserError: if runs that would be compared were not evaluated alike.
    """
    groups: dict[str, list[Run]] = {}
    for run in masked:
        if run.config.get("method") == "droplora" and RATE in run.config:
            groups.setdefault(_problem(run, RATE), []).append(run)
    labels = label_configurations(
        {key: {**runs[0].config, RATE: None} for key, runs in groups.items()}
    )
    gains = []
    for key, runs in groups.items():
        alike = _problem(runs[0], RATE, *METHOD, *MASK)
        beside = [run for run in lora if _problem(run, RATE, *METHOD, *MASK) == alike]
        if any(len({run.config[RATE] for run in side}) < 2 for side in (runs, beside)):
            continue
        label = labels[key] if len(groups) > 1 else "masked"
        if gain := _gain(label, read_configurations([*runs, *beside]), runs[0], at_loras):
            gains.append(gain)
    return gains


def _problem(run: Run, *but: str) -> str:
    return identity(without_seed(run.config, but=but))


def _gain(
    label: str, configurations: Sequence[Configuration], run: Run, at_loras: bool
) -> Difference | None:
    """Compare a masked configuration with LoRA; None where one has no rate of its own."""
    by_rate = {
        one.method == "LoRA": by_method(configurations)[one.method] for one in configurations
    }
    rates = {is_lora: own_rate(of_rates, ACCURACY) for is_lora, of_rates in by_rate.items()}
    if at_loras:
        rates[False] = rates[True] if rates[True] in by_rate[False] else None
    own = {is_lora: by_rate[is_lora][rate] for is_lora, rate in rates.items() if rate is not None}
    tasks = tasks_scored(configurations, ACCURACY)
    if len(own) < 2:
        return None
    of_lora, of_masked = (
        {
            seed: sum(one.scores[task, ACCURACY, seed].mean() for task in tasks) / len(tasks)
            for seed in set.intersection(*(set(one.seeds(task, ACCURACY)) for task in tasks))
        }
        for one in (own[True], own[False])
    )
    by_seed: dict[Hashable, float] = {
        seed: round(float(of_masked[seed] - of_lora[seed]), 12)
        for seed in sorted(of_masked.keys() & of_lora.keys())
    }
    if not by_seed:
        return None
    examples = min(own[True].examples[task] for task in tasks)
    return Difference(
        label=label,
        quantity="exact match",
        by_seed=by_seed,
        conditions=f"{examples} test examples, learning rate {own[False].learning_rate:g} against "
        f"LoRA's {own[True].learning_rate:g}",
        config=run.config,
    )
