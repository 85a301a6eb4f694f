"""What `python -m subspace_lab.evaluate` does for each kind of task.

`evaluation_of` gives the evaluation of a task. Its `check` loads what the task needs and refuses
what cannot be done, before a model is loaded or another task evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import pandas as pd

from subspace_lab import tasks
from subspace_lab.calibration import Calibration, best_temperature
from subspace_lab.errors import UserError
from subspace_lab.evaluation import (
    accuracy,
    code_execution,
    likelihood,
    lm_eval_bridge,
    mt_bench,
    records,
)
from subspace_lab.evaluation.configuration import HUB, EvaluationConfig
from subspace_lab.evaluation.records import Summary
from subspace_lab.evaluation.sandbox import Sandbox, choose_sandbox
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.stats.intervals import accuracy_interval

LM_EVAL = "lm_eval:"

Result = tuple[pd.DataFrame, Summary]


class Evaluation(Protocol):
    """The evaluation of one task."""

    def check(self) -> None:
        """Load what the task needs.

        Raises:
            UserError: if something is missing, or a setting does not apply to the task.
        """
        ...

    def run(self, trained: TrainedModel) -> Result:
        """Evaluate a model: a record for each example, and their summary."""
        ...


def evaluation_of(
    task: str, config: EvaluationConfig, *, run: Mapping[str, Any], folder: Path
) -> Evaluation:
    """Give the evaluation of a task.

    Args:
        task: a name, or several of `subspace_lab.tasks` joined by "+".
        config: the settings.
        run: configuration of the run, whose difficulty and data folder are used where `config` has
            none.
        folder: where answers and judgements are cached, which take long to make.
    """
    if task == "mt_bench":
        return MTBench(config, folder)
    if task in ("humaneval", "mbpp"):
        return Programs(cast(Literal["humaneval", "mbpp"], task), config)
    if task.startswith(LM_EVAL):
        return LmEval(task, config, run)
    return ScoredTask(task, config, run)


@dataclass(frozen=True)
class ScoredTask:
    """Examples of `subspace_lab.tasks`: generated answers, likelihood or exact match."""

    task: str
    config: EvaluationConfig
    trained_with: Mapping[str, Any]

    @cached_property
    def examples(self) -> list[tasks.Example]:
        """The examples; of a run's own built-in task as many as its training evaluated."""
        config, parts = self.config, self.task.split("+")
        for part in parts:
            tasks.check_name(part, others=("mt_bench", f"{LM_EVAL}NAME"))
        size = config.examples
        own = self.task == self.trained_with.get("task") and all(map(tasks.is_generated, parts))
        if size is None and own:
            size = self.trained_with.get("eval_size")
        return self._load(config.split, size)

    @cached_property
    def validation(self) -> list[tasks.Example]:
        """The examples that choose a temperature; none where no temperature is asked for.

        Raises:
            UserError: if the run was trained on them.
        """
        if not self.config.validation:
            return []
        if "validation" in self.trained_with.get("train_split", "train"):
            raise UserError("the run was trained on validation examples: omit `validation`")
        return self._load("validation", self.config.validation)

    def _load(self, split: str, size: int | None) -> list[tasks.Example]:
        config = self.config
        return tasks.load(
            self.task,
            split,
            size=size,
            seed=tasks.EVALUATION_SEED if config.seed is None else config.seed,
            data_dir=config.data_folder(self.trained_with),
            difficulty=config.difficulty or self.trained_with.get("difficulty", "easy"),
            draw=False,
        )

    def check(self) -> None:
        """Load the examples, and refuse those that are scored elsewhere."""
        needed = {self.config.split: self.examples}
        if self.config.validation:
            needed["validation"] = self.validation
        for split, examples in needed.items():
            if not examples:
                raise UserError(f"{self.task} has no {split} examples: use other data")
        if self.config.metric != "exact_match":
            for example in {example.task: example for example in self.examples}.values():
                tasks.score(example, "")

    def run(self, trained: TrainedModel) -> Result:
        """Score every example by the metric."""
        config = self.config
        settings = {"split": config.split, **config.recorded}
        calibration = Calibration()
        if config.metric == "generated":
            settings["max_new_tokens"] = config.new_tokens(self.task)
            table = accuracy.generated_accuracy(
                trained.model,
                trained.tokenizer,
                self.examples,
                max_new_tokens=settings["max_new_tokens"],
                batch_size=config.batch_size,
            )
        else:
            if self.validation:
                chosen_on = Calibration()
                self._score(trained, self.validation, chosen_on)
                calibration = Calibration(place=best_temperature(chosen_on.nats))
            table = self._score(trained, self.examples, calibration)
        summary = records.summarize(
            table,
            task=records.file_name(self.task),
            metric=config.metric,
            step=trained.step,
            settings=settings,
        )
        return table, replace(summary, calibration=calibration.summary())

    def _score(
        self, trained: TrainedModel, examples: list[tasks.Example], calibration: Calibration
    ) -> pd.DataFrame:
        shared = trained.model, trained.tokenizer, examples
        size = self.config.batch_size
        if self.config.metric == "likelihood":
            return likelihood.choose(*shared, batch_size=size, calibration=calibration)
        return likelihood.exact_match(*shared, batch_size=size, calibration=calibration)


@dataclass(frozen=True)
class Programs:
    """HumanEval or MBPP: programs, run in a sandbox."""

    task: Literal["humaneval", "mbpp"]
    config: EvaluationConfig

    @cached_property
    def sandbox(self) -> Sandbox:
        """Where programs run."""
        return choose_sandbox(unsafe_execution=self.config.unsafe_execution)

    @cached_property
    def benchmark(self) -> code_execution.CodeBenchmark:
        """The problems with their tests."""
        return code_execution.load_benchmark(self.task)

    @cached_property
    def examples(self) -> list[tasks.Example]:
        """The prompts. The problems are the benchmark's, so a run's own data folder is not used."""
        data_dir = None if self.config.data_dir == HUB else self.config.data_dir
        return tasks.load(
            self.task, "test", size=self.config.examples, data_dir=data_dir, draw=False
        )

    def check(self) -> None:
        """Try the sandbox, load benchmark and prompts."""
        _refuse_split_and_metric(self.task, self.config)
        _ = self.sandbox, self.benchmark, self.examples

    def run(self, trained: TrainedModel) -> Result:
        """Generate the programs and run them."""
        length = self.config.new_tokens(self.task)
        table = code_execution.evaluate_code(
            trained.model,
            trained.tokenizer,
            self.examples,
            self.benchmark,
            sandbox=self.sandbox,
            max_new_tokens=length,
            batch_size=self.config.batch_size,
        )
        settings = {"source": self.benchmark.source, "max_new_tokens": length}
        return table, records.summarize(
            table,
            task=self.task,
            metric="pass@1",
            step=trained.step,
            settings=settings | self.config.recorded,
        )


@dataclass(frozen=True)
class LmEval:
    """A task of lm-eval."""

    task: str
    config: EvaluationConfig
    trained_with: Mapping[str, Any]

    def check(self) -> None:
        """Refuse settings that lm-eval's task has of its own."""
        _refuse_split_and_metric(self.task, self.config)
        if self.config.max_new_tokens is not None:
            raise UserError(
                f"{self.task} sets the length of its answers itself: omit `max_new_tokens`, or "
                "evaluate it separately"
            )

    def run(self, trained: TrainedModel) -> Result:
        """Let lm-eval evaluate the model."""
        name = self.task.removeprefix(LM_EVAL)
        results = lm_eval_bridge.evaluate_with_lm_eval(
            trained.model,
            trained.tokenizer,
            [name],
            batch_size=self.config.batch_size,
            data_dir=self.config.data_folder(self.trained_with),
            limit=self.config.examples,
        )
        score = results.first_score(name)
        value, count = float(score["value"]), int(score["examples"])
        error = float(score["standard_error"])
        summary = Summary(
            records.file_name(self.task),
            str(score["metric"]),
            value,
            error if error == error else None,
            count,
            trained.step,
            {"library": "lm-eval", "filter": score["filter"], **self.config.recorded},
        )
        if value in (0, 1) and error == 0:  # a standard error that says nothing
            interval = accuracy_interval(round(value * count), count)
            summary = replace(summary, low=float(interval.low), high=float(interval.high))
        return results.records, summary


@dataclass(frozen=True)
class MTBench:
    """MT-Bench: two-turn answers and a judge."""

    config: EvaluationConfig
    folder: Path

    @cached_property
    def material(self) -> mt_bench.Material:
        """The questions, reference answers and judge prompts."""
        return mt_bench.load_material(self.config.questions)

    @cached_property
    def judge(self) -> mt_bench.Judge:
        """The judge."""
        if self.config.judge is None:
            raise UserError(
                "mt_bench needs a judge: set `judge`, and `judge_url` for a server of your own"
            )
        return mt_bench.Judge(self.config.judge, base_url=self.config.judge_url)

    def check(self) -> None:
        """Load questions, and make the judge's client."""
        _refuse_split_and_metric("mt_bench", self.config)
        _ = self.judge, self.material

    def run(self, trained: TrainedModel) -> Result:
        """Answer the questions and have the answers judged."""
        config, length = self.config, self.config.new_tokens("mt_bench")
        answers = mt_bench.answer(
            trained.model,
            trained.tokenizer,
            self.material.questions[: config.examples],
            template=config.template,
            max_new_tokens=length,
            batch_size=config.batch_size,
            file=self.folder / "mt_bench-answers.jsonl",
        )
        file = self.folder / "mt_bench-judgements.jsonl"
        judgements = mt_bench.judge_answers(self.material, answers, self.judge, file=file)
        score = mt_bench.mt_bench_score(judgements)
        if not score.questions:
            raise UserError(
                f"no reply of the judge {config.judge} contained a score (replies are in {file}): "
                "try another judge"
            )
        settings = {
            "judge": config.judge,
            "first_turn": score.first_turn,
            "second_turn": score.second_turn,
            "unscored": score.unscored,
            "decoding": "greedy",
            "template": config.template,
            "max_new_tokens": length,
            **config.recorded,
        }
        return judgements, Summary(
            "mt_bench",
            "mt_bench_score",
            score.mean,
            score.standard_error,
            score.questions,
            trained.step,
            settings,
        )


def _refuse_split_and_metric(task: str, config: EvaluationConfig) -> None:
    if config.split != "test" or config.metric != "generated":
        raise UserError(
            f"{task} has its own examples and metric: omit `split` and `metric`, or evaluate it "
            "separately"
        )
