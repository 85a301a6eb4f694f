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

    The mean over `seeds`, or over those of all rates; of accuracies more is better, of losses less,
    and nan, of a diverged run, is worst. None where there is only one rate, or one has no
    validation scores of these seeds.
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


def compare(
    methods: Methods, baseline: str, tasks: Sequence[str], measure: str
) -> list[dict[str, Any]]:
    """Give the mean of each method over the tasks, and its difference to the baseline.

    First at each rate, both at the same; then each method at its own rate, with the columns
    `baseline_rate`, the ratio `rate_ratio` to it, the `lowest_rate` and `highest_rate` that single
    seeds would have chosen, and whether the rate is the lowest or highest of the method's,
    `at_edge`. Methods without a choice, and all of them where the baseline has none, have no rate
    of their own.
    """
    pairs: list[tuple[Configuration, Configuration | None, dict[str, Any]]] = [
        (one, methods[baseline].get(rate), {"rates": EQUAL})
        for of_rates in methods.values()
        for rate, one in of_rates.items()
    ]
    own = {method: own_rate(of_rates, measure) for method, of_rates in methods.items()}
    of_baseline = own[baseline]
    for method, rate in own.items():
        if rate is None or of_baseline is None:
            continue
        of_rates = methods[method]
        single = [
            own_rate(of_rates, measure, seeds=[seed]) or math.nan
            for seed in validated_seeds(of_rates, measure)
        ]
        columns = {
            "rates": OWN,
            "baseline_rate": of_baseline,
            "rate_ratio": rate / of_baseline,
            "lowest_rate": min(single),
            "highest_rate": max(single),
            "at_edge": rate in (min(of_rates), max(of_rates)),
        }
        pairs.append((of_rates[rate], methods[baseline][of_baseline], columns))
    rows = []
    for one, other, columns in pairs:
        if mean := mean_of(one, tasks, measure):
            row = {"configuration": one.method, **one.settings, "learning_rate": one.learning_rate}
            if other is not None and other.method != one.method:
                row |= difference_of(other, one, tasks, measure)
            rows.append(row | mean | columns)
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
