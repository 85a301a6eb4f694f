from __future__ import annotations

import sys

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks import builtin
from subspace_lab.tasks.splits import in_generated_split

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", builtin.NAMES)
@pytest.mark.parametrize("difficulty", builtin.DIFFICULTIES)
def test_no_two_splits_share_a_question_whatever_the_seeds(name: str, difficulty: str) -> None:
    prompts = {
        split: {
            example.prompt
            for seed in range(2)
            for example in tasks.load(name, split, size=80, seed=seed, difficulty=difficulty)
        }
        for split in ("train", "validation", "test")
    }
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]


@pytest.mark.parametrize("name", builtin.MIXTURES)
def test_the_default_sizes_are_there_without_a_repeated_question(name: str) -> None:
    for split, size in builtin.SIZES.items():
        examples = tasks.load(name, split)
        assert len({example.prompt for example in examples}) == len(examples) == size


@pytest.mark.parametrize("name", builtin.MIXTURES)
def test_generators_share_the_rows_equally_and_responses_score(name: str) -> None:
    examples = tasks.load(name, "train", size=61, seed=3)
    generators = [example.metadata["generator"] for example in examples]
    counts = [generators.count(generator) for generator in builtin.MIXTURES[name]]
    assert sum(counts) == 61
    assert max(counts) - min(counts) <= 1
    assert all(tasks.score(example, example.response) == 1.0 for example in examples)
    assert all("\n" not in example.answer for example in examples)


def test_rows_depend_on_the_seed_alone() -> None:
    first, again = (tasks.load("pocket", "train", size=40, seed=1) for _ in range(2))
    assert first == again
    other = tasks.load("pocket", "train", size=40, seed=2)
    assert len({e.prompt for e in first} & {e.prompt for e in other}) < 20


def test_label_noise_is_for_training_rows_only() -> None:
    clean = tasks.load("pocket", "train", size=60, seed=1)
    noisy = tasks.load("pocket", "train", size=60, seed=1, label_noise=0.25)
    assert [e.prompt for e in noisy] == [e.prompt for e in clean]
    assert [e.answer for e in noisy] == [e.answer for e in clean]
    assert sum(tasks.score(e, e.response) == 0.0 for e in noisy) == 15
    for split in ("validation", "test"):
        assert tasks.load("pocket", split, size=20, label_noise=0.25) == tasks.load(
            "pocket", split, size=20
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" 12", 1.0), ("12\nQuestion", 1.0), (" 12.", 0.0), (" 1 2", 0.0), ("", 0.0), (" -12", 0.0)],
)
def test_only_the_exact_answer_counts(text: str, expected: float) -> None:
    assert tasks.score(tasks.Example("demo", "", " 12", "12"), text) == expected


def test_a_missing_library_and_wrong_arguments_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="no difficulty 'extreme': choose one of easy"):
        tasks.load("demo", "train", difficulty="extreme")
    with pytest.raises(UserError, match="has only 1 different questions for the validation split"):
        settings = {"min_animals": 1, "max_animals": 1, "max_instances": 1}
        builtin._different_examples(
            "demo", "leg_counting", settings, split="validation", size=50, seed=0
        )
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r'pip install "subspace_lab\[builtin\]"'):
        tasks.load("demo", "train", size=4)


def test_the_pocket_bases_pretraining_text_is_a_task_with_held_out_prompts() -> None:
    test = tasks.load("pocket_pretraining", "test", size=200)
    assert test == tasks.load("pocket_pretraining", "test", size=200)
    assert not any(in_generated_split(example.prompt, "train") for example in test)
    assert all(tasks.score(example, example.response) == 1.0 for example in test)
    assert len({example.prompt for example in test}) > 150
