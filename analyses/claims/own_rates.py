"""Masked configurations against LoRA, each at the learning rate that validation examples choose."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from analyses.claims.differences import Difference
from analyses.comparisons.pairing import Configuration, read_configurations, tasks_scored
from analyses.comparisons.rates import by_method, own_rate
from analyses.comparisons.scores import ACCURACY
from subspace_lab.configurations import MASK, METHOD, identity, label_configurations, without_seed
from subspace_lab.runs.run import Run

RATE = "learning_rate"


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
            groups.setdefault(_problem(run, but=(RATE,)), []).append(run)
    labels = label_configurations(
        {key: {**runs[0].config, RATE: None} for key, runs in groups.items()}
    )
    gains = []
    for key, runs in groups.items():
        alike = _problem(runs[0], but=(RATE, *METHOD, *MASK))
        beside = [run for run in lora if _problem(run, but=(RATE, *METHOD, *MASK)) == alike]
        if any(len({run.config[RATE] for run in side}) < 2 for side in (runs, beside)):
            continue
        label = labels[key] if len(groups) > 1 else "masked"
        gain = _gain(label, read_configurations([*runs, *beside]), runs[0], at_loras)
        if gain is not None:
            gains.append(gain)
    return gains


def _problem(run: Run, *, but: Sequence[str]) -> str:
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
