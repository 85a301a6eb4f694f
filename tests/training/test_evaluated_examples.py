"""What is evaluated is one set of examples for all seeds, and never what was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from subspace_lab.runs.run import Run
from subspace_lab.tasks import Example
from subspace_lab.trained import evaluation_examples
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.examples import load_examples


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    """A data folder with 300 training and 60 test examples."""
    (tmp_path / "math").mkdir()
    for split, count in (("train", 300), ("test", 60)):
        rows = [{"question": f"{split} {i}?", "answer": f"So.\n#### {i}"} for i in range(count)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "math" / f"gsm8k_{split}.jsonl").write_text(text)
    return str(tmp_path)


def load(run: Path, **fields: Any) -> tuple[list[Example], list[Example]]:
    """Give training and evaluated examples; an analysis of the run loads the same."""
    config = TrainConfig(train_size=90, eval_size=9, **fields)
    trained, evaluated = load_examples(config).values()
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": config.to_dict(), "modules": []}))
    assert evaluation_examples(Run(run)) == evaluated
    return trained, evaluated


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("task", ["pocket", "demo", "gsm8k"])
def test_seeds_train_on_their_own_examples_and_are_evaluated_on_the_same(
    gsm8k: str, tmp_path: Path, task: str, split: str
) -> None:
    loaded = [
        load(
            tmp_path / f"{seed}", task=task, seed=seed, label_noise=noise, eval_split=split,
            data_dir=gsm8k if task == "gsm8k" else None,
        )
        for seed, noise in ((0, 0.0), (1, 0.0), (2, 0.5))
    ]  # fmt: skip
    trained = [[example.prompt for example in examples] for examples, _ in loaded]
    evaluated = [examples for _, examples in loaded]
    assert evaluated[0] == evaluated[1] == evaluated[2]
    assert trained[0] != trained[1] != trained[2]
    prompts = {example.prompt for example in evaluated[0]}
    assert len(prompts) == 9
    assert not any(prompts.intersection(one) for one in trained)


def test_validation_examples_are_the_default() -> None:
    assert TrainConfig().eval_split == "validation"
