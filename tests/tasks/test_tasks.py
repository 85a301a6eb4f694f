from __future__ import annotations

import json
from pathlib import Path

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError


def test_unknown_tasks_and_splits_are_refused_with_the_choices() -> None:
    choices = "choose one of demo, pocket, flip, pocket_pretraining, boolq"
    with pytest.raises(UserError, match=f"no task 'gsm9k': {choices}"):
        tasks.load("gsm9k", "train")
    with pytest.raises(UserError, match="no task 'gsm9k'"):
        tasks.score(tasks.Example("gsm9k", "", "", ""), "")
    with pytest.raises(UserError, match="no split 'dev'"):
        tasks.load("gsm8k", "dev")


@pytest.mark.parametrize("name", ["codefeedback", "humaneval", "mbpp", "wizardlm"])
def test_what_is_scored_elsewhere_says_where(name: str) -> None:
    with pytest.raises(UserError, match=r"running programs|judged on MT-Bench"):
        tasks.score(tasks.Example(name, "", "", ""), "")


def test_a_size_draws_a_subset_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    rows = [{"question": f"{i}?", "answer": f"So.\n#### {i}"} for i in range(300)]
    (tmp_path / "math" / "gsm8k_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    all_rows = tasks.load("gsm8k", "train", data_dir=tmp_path)
    drawn = tasks.load("gsm8k", "train", size=20, seed=1, data_dir=tmp_path)
    prompts = {example.prompt for example in drawn}
    assert len(prompts) == 20
    assert prompts < {example.prompt for example in all_rows}
    assert drawn == tasks.load("gsm8k", "train", size=20, seed=1, data_dir=tmp_path)
    assert drawn != tasks.load("gsm8k", "train", size=20, seed=2, data_dir=tmp_path)
    assert tasks.load("gsm8k", "train", size=900, data_dir=tmp_path) == all_rows
    first = tasks.load("gsm8k", "train", size=20, data_dir=tmp_path, draw=False)
    assert first == all_rows[:20]


@pytest.mark.parametrize("name", ["demo", "gsm8k"])
@pytest.mark.parametrize("size", [0, -1])
def test_no_rows_are_no_size(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"size must be at least 1, not {size}"):
        tasks.load(name, "train", size=size)


def test_a_mixture_shares_its_size_equally_and_scores_each_row_by_its_task() -> None:
    mixture = tasks.load("demo+pocket", "train", size=7, seed=3)
    assert mixture == [
        *tasks.load("demo", "train", size=4, seed=3),
        *tasks.load("pocket", "train", size=3, seed=3),
    ]
    assert [tasks.score(row, row.response) for row in mixture] == [1.0] * 7
    with pytest.raises(UserError, match="no task 'pockets'"):
        tasks.load("demo+pockets", "train")
