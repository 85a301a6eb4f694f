"""Evaluate adapters of runs on the paper's tasks; results go into the runs.

    python -m subspace_lab.evaluate --run RUN --tasks boolq openbookqa --data_dir DATA
    python -m subspace_lab.evaluate --run RUN --tasks gsm8k humaneval lm_eval:piqa
    python -m subspace_lab.evaluate --run "runs/learning-rates/*" --tasks flip --metric exact_match
    OPENAI_API_KEY=... python -m subspace_lab.evaluate --run RUN --tasks mt_bench --judge gpt-4

A task is one of `subspace_lab.tasks`, or a mixture of them, boolq+arc_easy (generated greedily and
scored by the task's own scorer, or by likelihood with --metric), `humaneval` or `mbpp` (pass@1 of
programs, executed in a sandbox), `mt_bench` (80 two-turn questions and a judge at any
OpenAI-compatible endpoint), or `lm_eval:NAME` for any task of lm-eval. Data folder and difficulty
are the run's own, unless given here; the examples are the same for all runs, whatever seed a run
was trained with.

With --metric exact_match (of response tokens) or likelihood (of choices) the summary also has the
expected calibration error (15 bins of equal width), the Brier score, and the temperature with the
lowest loss on the examples themselves with that loss, a bound. With --validation N also those at
the temperature with the lowest loss on N validation examples.

Writes RUN/evaluations/TASK.parquet, one row per example, and RUN/evaluations/summary.json; for
other snapshots than the last, and for validation examples, into folders of their own beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from subspace_lab.errors import UserError, exit_code_2_on_user_error, with_flags
from subspace_lab.evaluation import records
from subspace_lab.evaluation.by_task import Evaluation, evaluation_of
from subspace_lab.evaluation.configuration import EvaluationConfig
from subspace_lab.evaluation.records import Summary
from subspace_lab.evaluation.trained_model import load_trained
from subspace_lab.runs.opening import open_runs
from subspace_lab.runs.run import Run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m subspace_lab.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--run",
        action="extend",
        nargs="+",
        required=True,
        metavar="RUN",
        help="a run directory, a PEFT adapter folder, or a quoted glob of run directories; may be "
        "given several times; the runs are evaluated one after another, and one that cannot be "
        "evaluated does not keep the others from it",
    )
    add("--tasks", nargs="+", required=True, metavar="TASK", help="what to evaluate on")
    add("--step", type=int, help="which snapshot (default: the last)")
    add(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="what the model computes in, on every machine and whatever it was trained in; bf16 "
        "takes half the memory, and its rounding changes losses by some 0.01 nats (default: fp32)",
    )
    add("--base", help="base model (default: the one that the run names)")
    add(
        "--data_dir",
        help="folder with task files in LLM-Adapters' layout, or hub (default: the run's own)",
    )
    add("--seed", type=int, help="of the examples of a built-in task (default: 0, for all runs)")
    add("--difficulty", help="of a built-in task: easy, medium or hard (default: the run's own)")
    add("--split", choices=("test", "validation"), default="test", help="default: test")
    add(
        "--metric",
        choices=("generated", "likelihood", "exact_match"),
        default="generated",
        help="greedy generation and the task's scorer; the most likely choice; or whether greedy "
        "decoding would write the response (default: generated)",
    )
    add(
        "--examples",
        type=int,
        help="first examples only, shared equally by the tasks of a mixture (default: all; of the "
        "built-in task that a run was trained on, its eval_size)",
    )
    add(
        "--validation",
        type=int,
        default=0,
        metavar="N",
        help="choose a temperature on N validation examples, and score test examples at it, too "
        "(default: 0, none)",
    )
    add("--batch_size", type=int, default=16, help="examples in one forward pass (default: 16)")
    add("--max_new_tokens", type=int, help="tokens of one answer (default: by task)")
    add(
        "--unsafe_execution",
        choices=("true", "false"),
        default="false",
        help="run generated programs (humaneval, mbpp) also where no sandbox works: they can then "
        "delete your files and read your keys (default: false)",
    )
    add("--judge", metavar="MODEL", help="the judge of mt_bench; its key: OPENAI_API_KEY")
    add("--judge_url", metavar="URL", help="an OpenAI-compatible endpoint (default: OpenAI)")
    add("--questions", metavar="FILE", help="FastChat's question.jsonl (default: its package)")
    add("--template", choices=("alpaca", "chat"), default="alpaca", help="of mt_bench's prompts")
    return parser


def _result(summary: Summary) -> str:
    """Write a score with its 95 % interval, or else with its standard error."""
    if summary.low is not None:
        spread = f" [{summary.low:.4f}, {summary.high:.4f}] (95 %)"
    elif summary.standard_error is not None:
        spread = f" ± {summary.standard_error:.4f}"
    else:
        spread = ""
    return f"{summary.metric} {summary.value:.4f}{spread}, n = {summary.examples}"


@exit_code_2_on_user_error
def main() -> None:
    """Evaluate the runs on each task, and say where the results are."""
    arguments = _parser().parse_args()
    arguments.unsafe_execution = arguments.unsafe_execution == "true"
    settings = {field.name: getattr(arguments, field.name) for field in fields(EvaluationConfig)}
    config = EvaluationConfig(**settings)
    plans = [(run, _evaluations(run, arguments.tasks, config)) for run in open_runs(arguments.run)]
    failed = []
    for place, (run, evaluations) in enumerate(plans, start=1):
        if len(plans) > 1:
            print(f"{run.path} ({place} of {len(plans)})", flush=True)
        try:
            _evaluate(run, evaluations, config, step=arguments.step)
        except UserError as error:
            if len(plans) == 1:
                raise
            print(f"error: {with_flags(str(error))}", file=sys.stderr)
            failed.append(str(run.path))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plans)} runs could not be evaluated: {', '.join(failed)}"
        )


def _evaluations(run: Run, names: Sequence[str], config: EvaluationConfig) -> dict[str, Evaluation]:
    """Make the evaluations of a run by their tasks, and check that they can be done."""
    folder = _folder(run) / records.FOLDER
    evaluations = {
        task: evaluation_of(task, config, run=run.config, folder=folder) for task in names
    }
    for evaluation in evaluations.values():
        evaluation.check()
    return evaluations


def _folder(run: Run) -> Path:
    return run.path if run.path.is_dir() else run.output_folder


def _evaluate(
    run: Run,
    evaluations: Mapping[str, Evaluation],
    config: EvaluationConfig,
    *,
    step: int | None,
) -> None:
    """Load a run's model, evaluate it, and say where the results are."""
    if root := run.snapshots.root:
        print(root.note)
    trained = load_trained(run, step=step, base=config.base, dtype=config.dtype)
    last = trained.step == run.final_step
    part = [] if last else [f"step-{trained.step}"]
    part += ["validation"] * (config.split == "validation")
    for task, evaluation in evaluations.items():
        table, summary = evaluation.run(trained)
        path, replaced = records.write(_folder(run), table, summary, part="-".join(part))
        print(f"{task}: {_result(summary)}")
        if summary.calibration:
            values = ", ".join(f"{name} {x:.4g}" for name, x in summary.calibration.items())
            print(f"  {values}")
        if replaced is not None:
            print(
                "the previous result used different examples or settings; it was moved to "
                f"{replaced}"
            )
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
