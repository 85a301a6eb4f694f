from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks import math
from subspace_lab.tasks.prompts import alpaca_math

GSM8K = {
    "question": "Natalia had 48 clips and half as many. How many?",
    "answer": "She had 48/2 = <<48/2=24>>24 more.\nThat is 48+24 = <<48+24=72>>1,072.\n#### 1,072",
}
MATH = {
    "problem": "What is $1/2$?",
    "solution": r"It is $\boxed{3}$, no, $\boxed{\frac{1}{2}}$.",
    "level": "Level 1",
    "type": "Algebra",
}
METAMATHQA = {
    "query": "How many?",
    "response": "There are 3.\n#### 3\nThe answer is: 3",
    "type": "GSM_Rephrased",
    "original_question": "How many?",
}


def test_a_gsm8k_row_loses_its_calculator_marks_and_its_comma(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "gsm8k_test.jsonl").write_text(json.dumps(GSM8K) + "\n")
    (example,) = tasks.load("gsm8k", "test", data_dir=tmp_path)
    assert example.prompt == alpaca_math(GSM8K["question"])
    assert example.answer == "1072"
    assert example.response == (
        " She had 48/2 = 24 more.\nThat is 48+24 = 1,072.\nThe answer is: 1072"
    )
    assert tasks.score(example, example.response) == 1.0


@pytest.mark.parametrize("exact_mathematics", [True, False])
@pytest.mark.parametrize(
    ("truth", "text", "expected"),
    [
        ("1234567", "The answer is: 1,234,567", 1.0),
        ("1234", "The answer is: 1,234,567", 0.0),
        ("18", "The answer is: 17.6", 0.0),
        ("18", "The answer is: 18.0", 1.0),
        ("18", "The answer is: $18.", 1.0),
        ("18", "So it is 18", 0.0),
        ("18", "The answer is: 5. No. The answer is: 18\nNext question", 1.0),
        ("18", "The answer is:", 0.0),
        ("-3", "The answer is -3", 1.0),
        (r"\frac{1}{2}", r"The answer is: \frac{1}{2}", 1.0),
        ("(1,2)", "The answer is: (1, 2)", 1.0),
        (r"\sqrt{2}", r"The answer is: \sqrt{3}", 0.0),
        ("1,2", "The answer is: 12", 0.0),  # two solutions are not twelve
        ("1,2", "The answer is: 1,2", 1.0),
        ("25_8", "The answer is: 258", 0.0),  # base eight
        ("18", "The answer is: snan", 0.0),
        ("1000", "The answer is: 1e3", 1.0),
    ],
)
def test_hand_checked_answers(
    monkeypatch: pytest.MonkeyPatch, exact_mathematics: bool, truth: str, text: str, expected: float
) -> None:
    if exact_mathematics:
        pytest.importorskip("math_verify")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tasks.score(tasks.Example("gsm8k", "", "", truth), text) == expected


@pytest.mark.parametrize(
    ("truth", "answer"), [(r"\frac{1}{2}", "0.5"), ("x^2+1", "1+x^2"), ("1,2", "2, 1")]
)
def test_equal_expressions_are_equal_with_math_verify(truth: str, answer: str) -> None:
    pytest.importorskip("math_verify")
    assert math.equal(answer, truth)


def test_all_seven_subjects_of_math_are_read_from_the_hub(hub: Callable[..., None]) -> None:
    hub(
        {
            ("EleutherAI/hendrycks_math", subject.config, None, "test"): [MATH]
            for subject in math.MATH
        }
    )
    examples = tasks.load("math", "test")
    assert len(examples) == 7
    assert examples[0].answer == r"\frac{1}{2}"
    assert examples[0].response.endswith("\nThe answer is: \\frac{1}{2}")
    assert tasks.score(examples[0], examples[0].response) == 1.0


def test_metamathqa_trains_and_does_not_test(hub: Callable[..., None]) -> None:
    hub({("meta-math/MetaMathQA", None, None, "train"): [METAMATHQA]})
    (example,) = tasks.load("metamathqa", "train+validation")
    assert (example.answer, example.response) == ("3", " " + METAMATHQA["response"])
    with pytest.raises(UserError, match="no test split: evaluate on gsm8k or math"):
        tasks.load("metamathqa", "test")


@pytest.mark.parametrize(
    ("name", "key", "row", "complaint"),
    [
        ("gsm8k", ("openai/gsm8k", "main", None, "train"), {"query": "?"}, "field 'question'"),
        (
            "gsm8k",
            ("openai/gsm8k", "main", None, "train"),
            {**GSM8K, "answer": "72"},
            "without '#### '",
        ),
        (
            "metamathqa",
            ("meta-math/MetaMathQA", None, None, "train"),
            {**METAMATHQA, "response": "3"},
            "without 'The answer is:'",
        ),
        (
            "math",
            ("EleutherAI/hendrycks_math", "algebra", None, "train"),
            {**MATH, "solution": "2"},
            "without .boxed",
        ),
    ],
)
def test_wrong_rows_are_reported(
    hub: Callable[..., None],
    name: str,
    key: tuple[str, str | None, str | None, str],
    row: dict[str, str],
    complaint: str,
) -> None:
    hub({key: [row]})
    with pytest.raises(UserError, match=f"{key[0]}.* row 1: .*{complaint}"):
        tasks.load(name, "train")


def test_published_gsm8k(published: Path) -> None:
    train = tasks.load("gsm8k", "train+validation", data_dir=published)
    test = tasks.load("gsm8k", "test", data_dir=published)
    assert (len(train), len(test)) == (7473, 1319)
    assert all(tasks.score(example, example.response) == 1.0 for example in test)
    assert not any("<<" in example.response for example in train)
