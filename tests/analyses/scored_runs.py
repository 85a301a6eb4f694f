"""Runs with nothing but the scores that a test plants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from subspace_lab.evaluation import records
from subspace_lab.runs.run import Run
from subspace_lab.tasks import Example
from subspace_lab.training.config import TrainConfig

ROWS = 40


def write_run(
    folder: Path,
    *,
    seed: int,
    losses: dict[str, np.ndarray],
    split: str = "test",
    metric: str = "exact_match",
    step: int | None = None,
    max_new_tokens: int = 32,
    prompts: list[int] | None = None,
    validation: tuple[float, float] | None = None,
    **fields: Any,
) -> Run:
    """Write a run that was evaluated, its answers right where the loss is below 1.

    Args:
        folder: where.
        seed: of the run.
        losses: of the test examples, by task.
        split: of the examples.
        metric: of the evaluation.
        step: of the evaluation.
        max_new_tokens: of the evaluation.
        prompts: which examples; None: the first ones.
        validation: accuracy and loss on validation examples at the end of training; None: unknown.
        fields: of the configuration.
    """
    config = TrainConfig(seed=seed, **fields)
    prompts = list(range(ROWS)) if prompts is None else prompts
    folder.mkdir(parents=True)
    law = {"keep_prob": config.keep_prob, "seed": seed} if config.masked else None
    content = {"config": config.to_dict(), "modules": [], "status": "finished"}
    (folder / "run.json").write_text(json.dumps(content | ({"mask": law} if law else {})))
    for task, values in losses.items():
        examples = [Example(task, f"{task} {i}", "yes", "yes") for i in prompts[: len(values)]]
        table = records.example_records(
            examples,
            gold=["yes"] * len(values),
            prediction=["yes"] * len(values),
            correct=list(values < 1),
            loss=list(values),
        )
        settings = {"split": split, "max_new_tokens": max_new_tokens}
        summary = records.summarize(table, task=task, metric=metric, step=step, settings=settings)
        records.write(folder, table, summary)
    if validation is not None:
        start = {"step": 0, "eval_exact_match": 1.0, "eval_response_loss": 0.0, "eval_examples": 9}
        end = dict(zip(("eval_exact_match", "eval_response_loss"), validation, strict=True))
        metrics = pd.DataFrame([start, {"step": 5, **end, "eval_examples": 9}])
        metrics.to_parquet(folder / "metrics.parquet")
    return Run(folder)
