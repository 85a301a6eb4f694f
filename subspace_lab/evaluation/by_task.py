"""What `python -m subspace_lab.evaluate` does for each kind of task.

`plan` checks and loads what a task needs and gives a function that evaluates a model, so that what
is missing is told before a model is loaded or another task evaluated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation import (
    accuracy,
    code_execution,
    likelihood,
    lm_eval_bridge,
    mt_bench,
    records,
)
from subspace_lab.evaluation.records import Summary
from subspace_lab.evaluation.sandbox import choose_sandbox
from subspace_lab.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run
    from subspace_lab.trained import TrainedModel

Evaluation = Callable[["TrainedModel"], tuple["pd.DataFrame", Summary]]

NEW_TOKENS = {"gsm8k": 512, "math": 512, "humaneval": 768, "mbpp": 768, "mt_bench": 1024}
NEW_TOKENS_OTHERWISE = 32
LM_EVAL = "lm_eval:"
HUB = "hub"


def plan(task: str, run: Run, arguments: argparse.Namespace, folder: Path) -> Evaluation:
    """Prepare the evaluation of one task: it gives per-example records and their summary.

    Args:
        task: a name, or several of `subspace_lab.tasks` joined by "+".
        run: the run, whose own difficulty and data folder are used where none is given.
        arguments: of the command line.
        folder: where what takes long is kept.

    Raises:
        UserError: if the task is unknown, what it needs is missing, or an option means nothing
            to it.
    """
    if task not in ("mt_bench", "humaneval", "mbpp") and not task.startswith(LM_EVAL):
        return _scored(task, run, arguments)
    if arguments.split != "test" or arguments.metric != "generated":
        raise UserError(
            f"{task} has rows and a metric of its own: leave --split and --metric out, or evaluate "
            "it apart from the others"
        )
    if task == "mt_bench":
        return _mt_bench(arguments, folder)
    if task.startswith(LM_EVAL):
        return _lm_eval(task, run, arguments)
    return _programs(task, arguments)


def _scored(task: str, run: Run, arguments: argparse.Namespace) -> Evaluation:
    examples = _rows(task, run, arguments)
    metric, batch = arguments.metric, arguments.batch_size
    settings = {"split": arguments.split, **_given(arguments)}
    if metric == "generated":
        settings["max_new_tokens"] = _new_tokens(task, arguments)

    def evaluate(trained: TrainedModel) -> tuple[pd.DataFrame, Summary]:
        model, tokenizer = trained.model, trained.tokenizer
        if metric == "generated":
            found = accuracy.generated_accuracy(
                model,
                tokenizer,
                examples,
                max_new_tokens=settings["max_new_tokens"],
                batch_size=batch,
            )
        else:
            measure = {"likelihood": likelihood.choose, "exact_match": likelihood.exact_match}
            found = measure[metric](model, tokenizer, examples, batch_size=batch)
        return found, records.summarise(
            found, task=task, metric=metric, step=trained.step, settings=settings
        )

    return evaluate


def _rows(task: str, run: Run, arguments: argparse.Namespace) -> list[tasks.Example]:
    """Load the rows; of a run's own built-in task as many as its training evaluated."""
    config, parts = run.config, task.split("+")
    known = (*tasks.names(), "mt_bench")
    for part in parts:
        if part not in known:
            raise UserError(
                f"there is no task {part!r}: choose {LM_EVAL}NAME or {', '.join(known)}"
            )
    size, seed = arguments.examples, arguments.seed
    if size is None and task == config.get("task") and set(parts) <= set(tasks.GENERATED):
        size = config.get("eval_size")
    examples = tasks.load(
        task,
        arguments.split,
        size=size,
        seed=tasks.EVALUATION_SEED if seed is None else seed,
        data_dir=_data_dir(run, arguments),
        difficulty=_chosen("difficulty", run, arguments, otherwise="easy"),
        draw=False,
    )
    if not examples:
        raise UserError(f"{task} has no {arguments.split} rows: evaluate on other data")
    if arguments.metric != "exact_match":
        for example in {row.task: row for row in examples}.values():
            tasks.score(example, "")  # refuses what is scored elsewhere
    return examples


def _programs(task: Any, arguments: argparse.Namespace) -> Evaluation:
    sandbox = choose_sandbox(unsafe_execution=arguments.unsafe_execution == "true")
    benchmark = code_execution.load_benchmark(task)
    # The problems are the benchmark's: a run's own data folder has nothing to do with them.
    data_dir = None if arguments.data_dir == HUB else arguments.data_dir
    examples = tasks.load(task, "test", size=arguments.examples, data_dir=data_dir, draw=False)
    length = _new_tokens(task, arguments)
    settings = {"source": benchmark.source, "max_new_tokens": length, **_given(arguments)}

    def evaluate(trained: TrainedModel) -> tuple[pd.DataFrame, Summary]:
        found = code_execution.evaluate_code(
            trained.model,
            trained.tokenizer,
            examples,
            benchmark,
            sandbox=sandbox,
            max_new_tokens=length,
            batch_size=arguments.batch_size,
        )
        return found, records.summarise(
            found, task=task, metric="pass@1", step=trained.step, settings=settings
        )

    return evaluate


def _lm_eval(task: str, run: Run, arguments: argparse.Namespace) -> Evaluation:
    if arguments.max_new_tokens is not None:
        raise UserError(
            f"{task} says itself how long its answers are: leave --max_new_tokens out, or evaluate "
            "it apart from the others"
        )
    name = task.removeprefix(LM_EVAL)

    def evaluate(trained: TrainedModel) -> tuple[pd.DataFrame, Summary]:
        results = lm_eval_bridge.evaluate_with_lm_eval(
            trained.model,
            trained.tokenizer,
            [name],
            batch_size=arguments.batch_size,
            data_dir=_data_dir(run, arguments),
            limit=arguments.examples,
        )
        score = results.first_score(name)
        value, count = float(score["value"]), int(score["examples"])
        error = float(score["standard_error"])
        summary = Summary(
            task.replace(":", "-").replace("/", "-"),
            str(score["metric"]),
            value,
            error if error == error else None,
            count,
            trained.step,
            {"library": "lm-eval", "filter": score["filter"], **_given(arguments)},
        )
        if value in (0, 1) and error == 0:  # a standard error that says nothing
            interval = accuracy_interval(round(value * count), count)
            summary = replace(summary, low=float(interval.low), high=float(interval.high))
        return results.records, summary

    return evaluate


def _mt_bench(arguments: argparse.Namespace, folder: Path) -> Evaluation:
    if arguments.judge is None:
        raise UserError(
            "mt_bench needs a judge: --judge MODEL, and --judge_url for your own server"
        )
    material = mt_bench.load_material(arguments.questions)
    judge = mt_bench.Judge(arguments.judge, base_url=arguments.judge_url)
    length = _new_tokens("mt_bench", arguments)

    def evaluate(trained: TrainedModel) -> tuple[pd.DataFrame, Summary]:
        answers = mt_bench.answer(
            trained.model,
            trained.tokenizer,
            material.questions[: arguments.examples],
            template=arguments.template,
            max_new_tokens=length,
            batch_size=arguments.batch_size,
            file=folder / "mt_bench-answers.jsonl",
        )
        judgements = folder / "mt_bench-judgements.jsonl"
        found = mt_bench.judge_answers(material, answers, judge, file=judgements)
        score = mt_bench.mt_bench_score(found)
        if not score.questions:
            raise UserError(
                f"the judge {arguments.judge} gave no answer a score: see what it said in "
                f"{judgements}, and take another judge"
            )
        settings = {
            "judge": arguments.judge,
            "first_turn": score.first_turn,
            "second_turn": score.second_turn,
            "unscored": score.unscored,
            "decoding": "greedy",
            "template": arguments.template,
            "max_new_tokens": length,
            **_given(arguments),
        }
        return found, Summary(
            "mt_bench",
            "mt_bench_score",
            score.mean,
            score.standard_error,
            score.questions,
            trained.step,
            settings,
        )

    return evaluate


def _chosen(name: str, run: Run, arguments: argparse.Namespace, *, otherwise: Any) -> Any:
    """What the command line says, else the run, else `otherwise`."""
    given = getattr(arguments, name)
    return run.config.get(name, otherwise) if given is None else given


def _data_dir(run: Run, arguments: argparse.Namespace) -> str | None:
    data_dir: str | None = _chosen("data_dir", run, arguments, otherwise=None)
    return None if data_dir == HUB else data_dir


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The dtype, and which examples and base were asked for where that is not the default."""
    names = ("dtype", "examples", "seed", "difficulty", "base")
    given = {name: getattr(arguments, name) for name in names}
    if given["seed"] == tasks.EVALUATION_SEED:
        given["seed"] = None
    return {name: value for name, value in given.items() if value is not None}


def _new_tokens(task: str, arguments: argparse.Namespace) -> int:
    if arguments.max_new_tokens is not None:
        return int(arguments.max_new_tokens)
    return max(NEW_TOKENS.get(part, NEW_TOKENS_OTHERWISE) for part in task.split("+"))
