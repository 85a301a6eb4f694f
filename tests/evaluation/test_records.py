from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from subspace_lab.evaluation import records


def table(correct) -> pd.DataFrame:
    return pd.DataFrame({"correct": correct})


def test_summary_of_a_proportion_has_its_closed_form_standard_error() -> None:
    correct = [True] * 30 + [False] * 10
    summary = records.summarise(table(correct), task="demo", metric="accuracy")
    np.testing.assert_allclose(summary.value, 0.75)
    np.testing.assert_allclose(summary.standard_error, np.sqrt(0.75 * 0.25 / 39))
    assert summary.examples == 40


def test_rows_without_a_value_are_no_zeros() -> None:
    scored = pd.DataFrame({"score": [8.0, float("nan"), 6.0]})
    summary = records.summarise(scored, task="mt_bench", metric="score", column="score")
    assert (summary.value, summary.examples) == (7.0, 2)


def test_evaluating_again_replaces_that_tasks_table_and_row_alone(tmp_path) -> None:
    for task, correct in [("a", [True]), ("b", [True, False]), ("a", [False, False])]:
        summary = records.summarise(
            table(correct), task=task, metric="accuracy", step=5, settings={"batch_size": 2}
        )
        path = records.write(tmp_path, table(correct), summary)
    assert path == tmp_path / "evaluations" / "a.parquet"
    assert pd.read_parquet(path)["correct"].tolist() == [False, False]
    rows = records.read_summaries(tmp_path)
    assert {task: row["value"] for task, row in rows.items()} == {"a": 0.0, "b": 0.5}
    assert rows["b"] == {
        "task": "b",
        "metric": "accuracy",
        "value": 0.5,
        "standard_error": pytest.approx(0.5),
        "examples": 2,
        "step": 5,
        "settings": {"batch_size": 2},
    }


def test_evaluations_that_end_together_keep_each_others_rows(tmp_path) -> None:
    def evaluate(task: str) -> None:
        summary = records.summarise(table([True]), task=task, metric="accuracy")
        records.write(tmp_path, table([True]), summary)

    names = [f"task{i}" for i in range(12)]
    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(evaluate, names))
    assert sorted(records.read_summaries(tmp_path)) == sorted(names)
