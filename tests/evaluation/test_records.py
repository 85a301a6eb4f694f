from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from subspace_lab import files
from subspace_lab.evaluation import records


def table(correct) -> pd.DataFrame:
    return pd.DataFrame({"correct": correct})


def test_summary_of_a_proportion_has_its_closed_form_standard_error() -> None:
    correct = [True] * 30 + [False] * 10
    summary = records.summarize(table(correct), task="demo", metric="accuracy")
    np.testing.assert_allclose(summary.value, 0.75)
    np.testing.assert_allclose(summary.standard_error, np.sqrt(0.75 * 0.25 / 39))
    assert summary.examples == 40


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # z^2 / (n + z^2) with z = 1.959964: the other end of Wilson's interval at 0 and 100 %.
    [(0, 40, 0.0, 3.841459 / 43.841459), (40, 40, 40 / 43.841459, 1.0)],
)
def test_an_accuracy_of_0_or_100_percent_has_an_interval(right, count, low, high) -> None:
    correct = [True] * right + [False] * (count - right)
    summary = records.summarize(table(correct), task="demo", metric="accuracy")
    np.testing.assert_allclose((summary.low, summary.high), (low, high), atol=1e-7)


def test_rows_without_a_value_are_no_zeros() -> None:
    scored = pd.DataFrame({"score": [8.0, float("nan"), 6.0]})
    summary = records.summarize(scored, task="mt_bench", metric="score", column="score")
    assert (summary.value, summary.examples) == (7.0, 2)
    half = 12.706205  # Student's t with one degree of freedom at 97.5 %, times an error of 1
    np.testing.assert_allclose((summary.low, summary.high), (7 - half, 7 + half))
    alone = records.summarize(scored[:1], task="mt_bench", metric="score", column="score")
    assert (alone.low, alone.high) == (None, None)


def write(folder, task: str, correct, *, metric: str = "accuracy", part: str = ""):
    settings = {"batch_size": 2}
    summary = records.summarize(table(correct), task=task, metric=metric, step=5, settings=settings)
    return records.write(folder, table(correct), summary, part=part)


def test_evaluating_again_replaces_that_tasks_table_and_row_alone(tmp_path) -> None:
    write(tmp_path, "a", [True, True])
    write(tmp_path, "b", [True, False])
    path, replaced = write(tmp_path, "a", [False, False])
    assert (path, replaced) == (tmp_path / "evaluations" / "a.parquet", None)
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
        "calibration": {},
        "low": pytest.approx(0.0945, abs=1e-4),  # Wilson's for 1 of 2
        "high": pytest.approx(0.9055, abs=1e-4),
    }


def test_what_was_measured_in_another_way_is_kept(tmp_path) -> None:
    write(tmp_path, "a", [True, True])
    for correct, metric in [([True, False], "loss"), ([False], "loss"), ([True, True], "accuracy")]:
        earlier = records.read_summaries(tmp_path)["a"]
        _, replaced = write(tmp_path, "a", correct, metric=metric)
        assert files.read_json(replaced.with_suffix(".json")) == earlier
        assert pd.read_parquet(replaced)["correct"].mean() == earlier["value"]
    assert len([*(tmp_path / "evaluations" / "replaced").glob("*.parquet")]) == 3


def test_what_was_measured_on_other_rows_is_kept(tmp_path) -> None:
    for prompts, kept in [("ab", False), ("ab", False), ("ac", True)]:
        rows = pd.DataFrame({"correct": [True, True], "prompt_hash": list(prompts)})
        summary = records.summarize(rows, task="a", metric="accuracy")
        _, replaced = records.write(tmp_path, rows, summary)
        assert (replaced is not None) == kept


def test_a_part_has_summaries_of_its_own(tmp_path) -> None:
    write(tmp_path, "a", [True])
    path, replaced = write(tmp_path, "a", [False, False], part="step-3")
    assert (path.parent.name, replaced) == ("step-3", None)
    assert records.read_summaries(tmp_path)["a"]["value"] == 1.0
    assert records.read_summaries(tmp_path, part="step-3")["a"]["value"] == 0.0


def test_what_is_no_number_is_null_in_the_summary(tmp_path) -> None:
    nan = float("nan")
    summary = records.Summary(
        "a", "score", 1.0, nan, 1, 5, {"second_turn": nan, "deep": {"x": nan}}
    )
    records.write(tmp_path, table([True]), summary)
    text = (tmp_path / "evaluations" / "summary.json").read_text()
    assert "NaN" not in text
    row = json.loads(text)["a"]
    assert (row["standard_error"], row["value"]) == (None, 1.0)
    assert row["settings"] == {"second_turn": None, "deep": {"x": None}}


def test_evaluations_that_end_together_keep_each_others_rows(tmp_path) -> None:
    def evaluate(task: str) -> None:
        summary = records.summarize(table([True]), task=task, metric="accuracy")
        records.write(tmp_path, table([True]), summary)

    names = [f"task{i}" for i in range(12)]
    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(evaluate, names))
    assert sorted(records.read_summaries(tmp_path)) == sorted(names)
