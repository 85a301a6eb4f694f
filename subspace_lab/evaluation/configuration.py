"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from subspace_lab import tasks
from subspace_lab.errors import UserError, check_counts
from subspace_lab.evaluation.mt_bench.answers import Template
from subspace_lab.models import Precision

Metric = Literal["generated", "likelihood", "exact_match"]
HUB = "hub"
NEW_TOKENS = {"gsm8k": 512, "math": 512, "humaneval": 768, "mbpp": 768, "mt_bench": 1024}
NEW_TOKENS_OTHERWISE = 32


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is evaluated; None leaves a setting to the run or to the task.

    Attributes:
        split: `test` or `validation` examples.
        metric: `generated` (greedy generation and the task's scorer), `likelihood` (the most likely
            choice) or `exact_match` (whether greedy decoding would write the response).
        validation: validation examples that choose the temperature of test examples under
            `exact_match` or `likelihood`; 0: none is chosen.
        examples: the first examples only, shared equally by the tasks of a mixture; None: all, or
            of the built-in task that a run was trained on, its eval_size.
        seed: of the examples of a built-in task; None: `tasks.EVALUATION_SEED`.
        difficulty: of a built-in task; None: the run's own.
        data_dir: folder with task files in LLM-Adapters' layout, or `hub`; None: the run's own.
        base: the base model, where it is not the one that the run names.
        dtype: what the model computes in.
        batch_size: examples in one forward pass.
        max_new_tokens: of one answer; None: by task.
        unsafe_execution: whether generated programs may run where no sandbox works.
        judge: the model that judges MT-Bench.
        judge_url: its OpenAI-compatible endpoint; None: OpenAI.
        questions: FastChat's question.jsonl; None: that of its package.
        template: of MT-Bench's prompts.

    Raises:
        UserError: if a count is below 1, or `validation` has no temperature to choose.
    """

    split: Literal["test", "validation"] = "test"
    metric: Metric = "generated"
    validation: int = 0
    examples: int | None = None
    seed: int | None = None
    difficulty: str | None = None
    data_dir: str | None = None
    base: str | None = None
    dtype: Precision = "fp32"
    batch_size: int = 16
    max_new_tokens: int | None = None
    unsafe_execution: bool = False
    judge: str | None = None
    judge_url: str | None = None
    questions: str | None = None
    template: Template = "alpaca"

    def __post_init__(self) -> None:
        check_counts(
            examples=self.examples, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens
        )
        check_counts(0, validation=self.validation)
        if self.validation and (self.split != "test" or self.metric == "generated"):
            raise UserError(
                "`validation` chooses a temperature for the loss on test examples: set `metric` to "
                "exact_match or likelihood and `split` to test"
            )

    def data_folder(self, run: Mapping[str, Any]) -> str | None:
        """Name the data folder, given the configuration of the run; None: the hub."""
        folder = run.get("data_dir") if self.data_dir is None else self.data_dir
        return None if folder == HUB else folder

    def new_tokens(self, task: str) -> int:
        """Give the maximum length of an answer to a task, or to any of a mixture."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return max(NEW_TOKENS.get(part, NEW_TOKENS_OTHERWISE) for part in task.split("+"))

    @property
    def recorded(self) -> dict[str, Any]:
        """What every result says: the dtype, and which examples and base were asked for."""
        values = {
            "dtype": self.dtype,
            "examples": self.examples,
            "validation": self.validation or None,
            "seed": None if self.seed == tasks.EVALUATION_SEED else self.seed,
            "difficulty": self.difficulty,
            "base": self.base,
        }
        return {name: value for name, value in values.items() if value is not None}
