"""What the configurations of a set of runs scored on the tasks of one of the paper's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.comparisons.configurations import check_same_problem, describe
from analyses.comparisons.scores import Scored, check_same_evaluation, scored_groups
from analyses.paper_tables.published import AVERAGE, LLAMA2, LLAMA3, Table
from subspace_lab.configurations import in_effect
from subspace_lab.runs.run import Run

MODELS = {r"llama-?2-7b": LLAMA2, r"llama-?3-8b": LLAMA3}


@dataclass(frozen=True)
class Result:
    """What one configuration scored on one table's tasks.

    Attributes:
        rank: 0 for full fine-tuning.
        prune_prob: 1 - keep_prob; 0 without a mask.
        settings: method, rank, mask, and what else is unlike most runs of the base, by column.
        parameters: trainable parameters, in millions; empty where the run does not say.
        scores: by column title, one value per seed, as evaluated.
        examples: by column title, the minimum number of test examples.
    """

    model: str
    method: str
    rank: int
    prune_prob: float
    settings: Mapping[str, Any]
    parameters: str
    scores: Mapping[str, list[float]]
    examples: Mapping[str, int]


def collect(table: Table, runs: Iterable[Run]) -> list[Result]:
    """Group the runs that were evaluated on a table's tasks by configuration.

    Raises:
        UserError: if runs of one base model differ in problem or evaluation, or two have the same
            configuration and seed.
    """
    bases: dict[str, list[list[Scored]]] = {}
    for group in scored_groups(runs, tasks=table.columns):
        bases.setdefault(model_name(group[0].run), []).append(group)
    results = []
    for model, groups in bases.items():
        scored = [one for group in groups for one in group]
        check_same_problem([one.run for one in scored], but=["base"])
        check_same_evaluation(scored)
        settings = describe([group[0].run for group in groups])
        results += [
            _result(table, model, group, of_group)
            for group, of_group in zip(groups, settings, strict=True)
        ]
    return results


def _result(
    table: Table, model: str, members: Sequence[Scored], settings: Mapping[str, Any]
) -> Result:
    scores: dict[str, list[float]] = {}
    examples: dict[str, int] = {}
    for task, title in table.columns.items():
        if known := [one.summaries[task] for one in members if task in one.summaries]:
            scores[title] = [summary["value"] for summary in known]
            examples[title] = min(summary["examples"] for summary in known)
    whole = [one.summaries for one in members if one.summaries.keys() == table.columns.keys()]
    if whole:
        scores[AVERAGE] = [
            sum(summary["value"] for summary in summaries.values()) / len(summaries)
            for summaries in whole
        ]
    trained = members[0].run.description.get("provenance", {}).get("trainable_parameters")
    return Result(
        model,
        settings["method"],
        settings["rank"],
        0.0 if settings["keep_prob"] is None else round(1 - settings["keep_prob"], 6),
        settings,
        f"{trained / 1e6:.2f}M" if trained else "",
        scores,
        examples,
    )


def model_name(run: Run) -> str:
    """Name a run's base model as the paper does, where the paper has it."""
    base = str(in_effect(run.config)["base"])
    named = (name for pattern, name in MODELS.items() if re.search(pattern, base, re.IGNORECASE))
    return next(named, base)
