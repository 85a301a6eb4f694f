from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks.prompts import alpaca

KEY = ("fxmeng/WizardLM_evol_instruct_V2_143k", None, None, "train")
TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]


@pytest.mark.parametrize(
    "row", [{"conversations": TURNS}, {"human": "Why?", "assistant": "Because."}]
)
def test_the_first_question_and_answer(hub: Callable[..., None], row: dict[str, Any]) -> None:
    hub({KEY: [row]})
    (example,) = tasks.load("wizardlm", "train+validation")
    assert (example.prompt, example.response) == (alpaca("Why?"), "Because.")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TURNS[:1]},
        {"conversations": [TURNS[0], {"value": None}]},
        {"question": "Why?"},
    ],
)
def test_a_wrong_row_is_reported(hub: Callable[..., None], row: dict[str, Any]) -> None:
    hub({KEY: [row]})
    with pytest.raises(UserError, match=f"{KEY[0]}, train example 1"):
        tasks.load("wizardlm", "train")


def test_it_neither_tests_nor_scores() -> None:
    with pytest.raises(UserError, match="MT-Bench"):
        tasks.load("wizardlm", "test")
    with pytest.raises(UserError, match="MT-Bench"):
        tasks.score(tasks.Example("wizardlm", "", "", ""), "Because.")
