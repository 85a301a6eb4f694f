"""Learning rates: methods compared at an equal rate, and each at its own.

A method's own rate is the one with the best mean score on validation examples, by the measure that
is then compared on test examples. Which of two methods is ahead can depend on the rate at which
they are compared, and methods have different best rates ("Learning Rate Matters: Vanilla LoRA May
Suffice", arXiv 2602.04998): a difference at one rate says nothing about the methods tuned alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.comparisons.pairing import Configuration, Seeds, difference_of, mean_of
from analyses.comparisons.scores import ACCURACY
from subspace_lab.errors import UserError

EQUAL, OWN = "equal", "own"
"""Which rates a row compares: the same for both methods, or each method's own."""

Methods = Mapping[str, Mapping[float, Configuration]]
"""Configurations by method and learning rate, ascending."""


def by_method(configurations: Sequence[Configuration]) -> Methods:
    """Group configurations that differ in their learning rate only."""
    methods: dict[str, dict[float, Configuration]] = {}
    for one in sorted(configurations, key=lambda one: one.learning_rate):
        methods.setdefault(one.method, {})[one.learning_rate] = one
    return {one.method: methods[one.method] for one in configurations}


def check_baseline(methods: Methods, baseline: str) -> None:
    """Check that there is a configuration to compare with.

    Raises:
        UserError: if there is not.
    """
    if baseline not in methods:
        raise UserError(
            f"there is no configuration {baseline!r}: give --baseline one of {', '.join(methods)}"
        )


def several_rates(methods: Methods) -> bool:
    """Tell whether there is more than one learning rate."""
    return len({rate for of_rates in methods.values() for rate in of_rates}) > 1


def own_rate(
    of_rates: Mapping[float, Configuration], measure: str, *, seeds: Sequence[Seeds] | None = None
) -> float | None:
    """Choose the rate of the best mean validation score; of a tie the lowest.

    Args:
        of_rates: the configurations of a method by rate.
        measure: accuracy (more is better) or a loss (less is); nan, of a diverged run, is worst.
        seeds: over which the mean is taken; None: those of all rates.

    Returns:
        The rate; None where there is only one, or a rate has no validation scores of these seeds.
    """
    common = validated_seeds(of_rates, measure) if seeds is None else seeds
    if len(of_rates) < 2 or not common:
        return None
    sign = -1.0 if measure == ACCURACY else 1.0

    def cost(rate: float) -> float:
        scores = [of_rates[rate].validation[measure, seed] for seed in common]
        mean = sign * sum(scores) / len(scores)
        return math.inf if math.isnan(mean) else mean

    return min(of_rates, key=cost)


def validated_seeds(of_rates: Mapping[float, Configuration], measure: str) -> list[Seeds]:
    """List the seeds that have validation scores at all rates."""
    known = [
        {seed for name, seed in one.validation if name == measure} for one in of_rates.values()
    ]
    return sorted(set.intersection(*known))


def at_equal_rates(
    methods: Methods, baseline: str, tasks: Sequence[str], measure: str
) -> list[dict[str, Any]]:
    """Give the mean of each method at each rate, and its difference to the baseline at that rate.

    Args:
        methods: the methods.
        baseline: the name of one.
        tasks: that are averaged.
        measure: accuracy, or a loss.
    """
    return [
        _row(one, methods[baseline].get(rate), tasks, measure, mean) | {"rates": EQUAL}
        for of_rates in methods.values()
        for rate, one in of_rates.items()
        if (mean := mean_of(one, tasks, measure))
    ]


def at_own_rates(
    methods: Methods, baseline: str, tasks: Sequence[str], measure: str
) -> list[dict[str, Any]]:
    """Give the mean of each method at its own rate, and its difference to the baseline at its own.

    Beside the columns of `at_equal_rates`: the `baseline_rate` and the ratio `rate_ratio` to it;
    the `lowest_rate` and `highest_rate` that single seeds would have chosen; and whether the rate
    is the lowest or highest of the method's, `at_edge`. Methods without a choice, and all of them
    where the baseline has none, are left out.
    """
    own = {
        method: rate
        for method, of_rates in methods.items()
        if (rate := own_rate(of_rates, measure)) is not None
    }
    if baseline not in own:
        return []
    rows = []
    for method, rate in own.items():
        of_rates = methods[method]
        if not (mean := mean_of(of_rates[rate], tasks, measure)):
            continue
        other = methods[baseline][own[baseline]]
        single = [
            own_rate(of_rates, measure, seeds=[seed]) or math.nan
            for seed in validated_seeds(of_rates, measure)
        ]
        rows.append(
            _row(of_rates[rate], other, tasks, measure, mean)
            | {
                "rates": OWN,
                "baseline_rate": own[baseline],
                "rate_ratio": rate / own[baseline],
                "lowest_rate": min(single),
                "highest_rate": max(single),
                "at_edge": rate in (min(of_rates), max(of_rates)),
            }
        )
    return rows


def without_own_rate(methods: Methods, measure: str) -> dict[str, str]:
    """Say of each method that has no rate of its own why not."""
    reasons = {}
    for method, of_rates in methods.items():
        if len(of_rates) < 2:
            reasons[method] = f"it has one learning rate, {next(iter(of_rates)):g}"
        elif not validated_seeds(of_rates, measure):
            reasons[method] = "its rates were not evaluated on validation examples, under one seed"
    return reasons


def _row(
    one: Configuration,
    other: Configuration | None,
    tasks: Sequence[str],
    measure: str,
    mean: Mapping[str, Any],
) -> dict[str, Any]:
    row = {"configuration": one.method, **one.settings, "learning_rate": one.learning_rate, **mean}
    if other is not None and other.method != one.method:
        row |= difference_of(other, one, tasks, measure)
    return row
