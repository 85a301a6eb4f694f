"""Evaluate a run's adapter on the paper's tasks; results go into the run.

    python -m subspace_lab.evaluate --run RUN --tasks boolq openbookqa --data_dir DATA
    python -m subspace_lab.evaluate --run RUN --tasks gsm8k humaneval lm_eval:piqa
    OPENAI_API_KEY=... python -m subspace_lab.evaluate --run RUN --tasks mt_bench --judge gpt-4

A task is one of `subspace_lab.tasks` (generated greedily and scored by the task's own scorer, or by
likelihood with --metric), `humaneval` or `mbpp` (programs are executed: pass@1), `mt_bench` (80
two-turn questions and a judge at any OpenAI-compatible endpoint), or `lm_eval:NAME` for any task of
lm-eval. Writes RUN/evaluations/TASK.parquet, one row per example, and RUN/evaluations/summary.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspace_lab.errors import UserError, exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.evaluation.records import Summary
    from subspace_lab.trained import TrainedModel

NEW_TOKENS = {"gsm8k": 512, "math": 512, "humaneval": 768, "mbpp": 768, "mt_bench": 1024}
NEW_TOKENS_OTHERWISE = 32
LM_EVAL = "lm_eval:"


def evaluate(
    trained: TrainedModel, task: str, arguments: argparse.Namespace, folder: Path
) -> tuple[pd.DataFrame, Summary]:
    """Evaluate one task: per-example records and their summary.

    Raises:
        UserError: if the task is unknown, or what it needs is missing.
    """
    if task == "mt_bench":
        return _mt_bench(trained, arguments, folder)
    if task.startswith(LM_EVAL):
        return _lm_eval(trained, task, arguments)
    if task in ("humaneval", "mbpp"):
        return _programs(trained, task, arguments)
    return _scored(trained, task, arguments)


def _scored(
    trained: TrainedModel, task: str, arguments: argparse.Namespace
) -> tuple[pd.DataFrame, Summary]:
    from subspace_lab import tasks
    from subspace_lab.evaluation import accuracy, likelihood, records

    examples = tasks.load(task, arguments.split, data_dir=arguments.data_dir)[: arguments.examples]
    batch = arguments.batch_size
    if arguments.metric == "generated":
        found = accuracy.generated_accuracy(
            trained.model,
            trained.tokenizer,
            examples,
            max_new_tokens=_new_tokens(task, arguments),
            batch_size=batch,
        )
    else:
        measure = {"likelihood": likelihood.choose, "exact_match": likelihood.exact_match}
        found = measure[arguments.metric](
            trained.model, trained.tokenizer, examples, batch_size=batch
        )
    settings = {"split": arguments.split, "max_new_tokens": _new_tokens(task, arguments)}
    return found, records.summarise(
        found, task=task, metric=arguments.metric, step=trained.step, settings=settings
    )


def _programs(
    trained: TrainedModel, task: Any, arguments: argparse.Namespace
) -> tuple[pd.DataFrame, Summary]:
    from subspace_lab import tasks
    from subspace_lab.evaluation import code_execution, records

    benchmark = code_execution.load_benchmark(task)
    examples = tasks.load(task, "test", data_dir=arguments.data_dir)[: arguments.examples]
    found = code_execution.evaluate_code(
        trained.model,
        trained.tokenizer,
        examples,
        benchmark,
        max_new_tokens=_new_tokens(task, arguments),
        batch_size=arguments.batch_size,
    )
    settings = {"source": benchmark.source, "max_new_tokens": _new_tokens(task, arguments)}
    return found, records.summarise(
        found, task=task, metric="pass@1", step=trained.step, settings=settings
    )


def _lm_eval(
    trained: TrainedModel, task: str, arguments: argparse.Namespace
) -> tuple[pd.DataFrame, Summary]:
    from subspace_lab.evaluation.lm_eval_bridge import evaluate_with_lm_eval
    from subspace_lab.evaluation.records import Summary

    results = evaluate_with_lm_eval(
        trained.model,
        trained.tokenizer,
        [task.removeprefix(LM_EVAL)],
        batch_size=arguments.batch_size,
        data_dir=arguments.data_dir,
        limit=arguments.examples,
    )
    score = results.scores.iloc[0]
    error = float(score["standard_error"])
    return results.records, Summary(
        task.replace(":", "-"),
        str(score["metric"]),
        float(score["value"]),
        error if error == error else None,
        int(score["examples"]),
        trained.step,
        {"library": "lm-eval", "limit": arguments.examples},
    )


def _mt_bench(
    trained: TrainedModel, arguments: argparse.Namespace, folder: Path
) -> tuple[pd.DataFrame, Summary]:
    from subspace_lab.evaluation import mt_bench
    from subspace_lab.evaluation.records import Summary

    if arguments.judge is None:
        raise UserError(
            "mt_bench needs a judge: --judge MODEL, and --judge_url for your own server"
        )
    material = mt_bench.load_material(arguments.questions)
    # Answers take long and judging may stop half-way, so they are kept, by step and length.
    length = _new_tokens("mt_bench", arguments)
    kept = folder / f"mt_bench-answers-step-{trained.step}-{length}.jsonl"
    questions = material.questions[: arguments.examples]
    if kept.exists():
        answers = mt_bench.read_answers(kept)
    else:
        answers = mt_bench.answer(
            trained.model,
            trained.tokenizer,
            questions,
            template=arguments.template,
            max_new_tokens=length,
            batch_size=arguments.batch_size,
        )
        mt_bench.write_answers(kept, answers)
    wanted = {question.question_id for question in questions}
    answers = {number: turns for number, turns in answers.items() if number in wanted}
    judge = mt_bench.Judge(arguments.judge, base_url=arguments.judge_url)
    found = mt_bench.judge_answers(
        material, answers, judge, file=folder / "mt_bench-judgements.jsonl"
    )
    score = mt_bench.mt_bench_score(found)
    settings = {
        "judge": arguments.judge,
        "first_turn": score.first_turn,
        "second_turn": score.second_turn,
        "unscored": score.unscored,
        "decoding": "greedy",
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


def _new_tokens(task: str, arguments: argparse.Namespace) -> int:
    if arguments.max_new_tokens is not None:
        return int(arguments.max_new_tokens)
    return NEW_TOKENS.get(task, NEW_TOKENS_OTHERWISE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m subspace_lab.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, help="a run directory, or a PEFT adapter folder")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="what to evaluate on")
    add("--step", type=int, help="which snapshot (default: the last)")
    add("--base", help="base model (default: the one that the run names)")
    add("--data_dir", help="folder with task files in LLM-Adapters' layout (default: the hub)")
    add("--split", choices=("test", "validation"), default="test", help="default: test")
    add(
        "--metric",
        choices=("generated", "likelihood", "exact_match"),
        default="generated",
        help="greedy generation and the task's scorer; the most likely choice; or whether greedy "
        "decoding would write the response (default: generated)",
    )
    add("--examples", type=int, help="first examples only (default: all)")
    add("--batch_size", type=int, default=16, help="rows in one forward pass (default: 16)")
    add("--max_new_tokens", type=int, help="tokens of one answer (default: by task)")
    add("--judge", metavar="MODEL", help="the judge of mt_bench; its key: OPENAI_API_KEY")
    add("--judge_url", metavar="URL", help="an OpenAI-compatible endpoint (default: OpenAI)")
    add("--questions", metavar="FILE", help="FastChat's question.jsonl (default: its package)")
    add("--template", choices=("alpaca", "chat"), default="alpaca", help="of mt_bench's prompts")
    return parser


@exit_code_2_on_user_error
def main() -> None:
    """Evaluate the run on each task, and say where the results are."""
    arguments = _parser().parse_args()
    from subspace_lab import tasks
    from subspace_lab.evaluation import records
    from subspace_lab.recording.run import Run
    from subspace_lab.trained import load_trained

    known = (*tasks.names(), "mt_bench")
    for task in arguments.tasks:
        if task not in known and not task.startswith(LM_EVAL):
            raise UserError(
                f"there is no task {task!r}: choose {LM_EVAL}NAME or {', '.join(known)}"
            )
    run = Run(arguments.run)
    trained = load_trained(run, step=arguments.step, base=arguments.base)
    folder = run.path if run.path.is_dir() else run.output_folder
    (folder / records.FOLDER).mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        found, summary = evaluate(trained, task, arguments, folder / records.FOLDER)
        path = records.write(folder, found, summary)
        error = f" ± {summary.standard_error:.4f}" if summary.standard_error is not None else ""
        print(f"{task}: {summary.metric} {summary.value:.4f}{error}, n = {summary.examples}")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
