from __future__ import annotations

import pytest

from subspace_lab.errors import UserError
from subspace_lab.tasks import splits

PROMPTS = [f"What is {i} + 1?" for i in range(2000)]


def test_every_prompt_has_one_place_among_generated_splits() -> None:
    parts = ("train", "validation", "test")
    for prompt in PROMPTS:
        places = [split for split in parts if splits.in_generated_split(prompt, split)]
        assert len(places) == 1
        assert splits.in_generated_split(prompt, "train+validation") == (places != ["test"])


def test_every_training_row_is_in_train_or_validation() -> None:
    for prompt in PROMPTS:
        in_train = splits.in_training_split(prompt, "train")
        assert in_train != splits.in_training_split(prompt, "validation")
        assert splits.in_training_split(prompt, "train+validation")


def test_buckets_are_fixed_for_all_time_and_evenly_filled() -> None:
    # sha256("abc") starts with ba7816bf8f01cfea
    assert splits.bucket("abc") == 0xBA7816BF8F01CFEA % 100
    held_out = sum(splits.in_training_split(str(i), "validation") for i in range(20_000))
    assert held_out / 20_000 == pytest.approx(0.05, abs=0.006)  # four standard errors


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="no split 'dev': choose one of train, validation"):
        splits.check_split("dev")
