from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
        ("18", "The answer is: 1e99999999999999999999", 0.0),
    ],
)
def test_hand_checked_answers(
    monkeypatch: pytest.MonkeyPatch, exact_mathematics: bool, truth: str, text: str, expected: float
) -> None:
    if exact_mathematics:
        pytest.importorskip("math_verify")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tasks.score(tasks.Example("math", "", "", truth), text) == expected


@pytest.mark.parametrize("exact_mathematics", [True, False])
@pytest.mark.parametrize(
    ("ending", "right"),
    [
        *[
            (ending, True)
            for ending in (
                "18", "$18.", "18 dollars", "18 eggs.", "**18**", "18 miles per hour", "about 18",
                r"\$18", "18%", "18 km/h", "$18.00 a day", "18-year-old", "18, and 2 are left",
                "**18 dollars**\nNext question: 5",
            )
        ],
        *[
            (ending, False)
            for ending in (
                "20", "20 dollars, not 18", "18 + 2 = 20", "15-18", "-$18", "1,018", "180 eggs",
                "18.5 dollars", "17.6", "1,800 dollars", "eighteen", "eggs",
                "18. The answer is: 20",
            )
        ],
    ],
)  # fmt: skip
def test_the_wording_around_a_gsm8k_answer_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, exact_mathematics: bool, ending: str, right: bool
) -> None:
    if exact_mathematics:
        pytest.importorskip("math_verify")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = f"He has 99 left. The answer is: {ending}"
    assert tasks.score(tasks.Example("gsm8k", "", "", "18"), text) == right
    of_gsm8k = tasks.Example("metamathqa", "", "", "18", metadata={"type": "GSM_Rephrased"})
    assert tasks.score(of_gsm8k, text) == right


def test_wording_counts_in_gsm8k_only() -> None:
    text = "The answer is: 18 dollars"
    for example in (
        tasks.Example("math", "", "", "18"),
        tasks.Example("metamathqa", "", "", "18", metadata={"type": "MATH_Rephrased"}),
    ):
        assert tasks.score(example, text) == 0.0


def test_scores_are_the_same_in_any_thread() -> None:
    pytest.importorskip("math_verify")
    texts = (r"\frac{1}{2}", "0.5", "1/2", "0.6", "x", "a\nb", "½ é")
    example = tasks.Example("math", "", "", r"\frac{1}{2}")

    def score(text: str) -> float:
        return tasks.score(example, f"The answer is: {text}")

    expected = [score(text) for text in texts]
    assert expected[:4] == [1, 1, 1, 0]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(score, texts)) == expected


def test_what_takes_too_long_is_unequal_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr("subspace_lab.tasks.expressions.LIMIT", 1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(math.equal, "9^{9^{9^{9}}}", "18").result() is False


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
    with pytest.raises(UserError, match=f"{key[0]}.* example 1: .*{complaint}"):
        tasks.load(name, "train")


def test_published_gsm8k(published: Path) -> None:
    train = tasks.load("gsm8k", "train+validation", data_dir=published)
    test = tasks.load("gsm8k", "test", data_dir=published)
    assert (len(train), len(test)) == (7473, 1319)
    assert all(tasks.score(example, example.response) == 1.0 for example in test)
    assert not any("<<" in example.response for example in train)
