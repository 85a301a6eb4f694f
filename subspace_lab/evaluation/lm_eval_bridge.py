"""Any task of lm-eval on a model that is already loaded, adapter and all."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import evaluation_mode
from subspace_lab.evaluation.records import prompt_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASK_FOLDER = Path(__file__).parent / "lm_eval_tasks"
OWN_PREFIX = "llm_adapters_"  # for these alone lm-eval need not read its thousands of files


@dataclass(frozen=True)
class LmEvalResults:
    """Results of lm-eval.

    Attributes:
        scores: One row per task or group, filter and metric: `task`, `filter`, `metric`, `value`,
            `standard_error` (nan where lm-eval has none), `examples`.
        records: One row per example and filter: `task`, `index`, `filter`, `prompt_hash`, `gold`,
            `prediction`, and a column for each metric.
    """

    scores: pd.DataFrame
    records: pd.DataFrame

    def first_score(self, name: str) -> pd.Series[Any]:
        """Give the row of `scores` with the first filter and metric of a task or group.

        Raises:
            UserError: if lm-eval gives none, as of a group that it does not average.
        """
        own = self.scores[self.scores["task"] == name]
        if own.empty:
            raise UserError(
                f"lm-eval gives {name} no score of its own: evaluate its tasks, "
                f"{', '.join(dict.fromkeys(self.scores['task']))}"
            )
        return own.iloc[0]


def evaluate_with_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    batch_size: int = 16,
    data_dir: Path | str | None = None,
    limit: int | None = None,
) -> LmEvalResults:
    """Run lm-eval's tasks, among them those of `lm_eval_tasks`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of lm-eval tasks or groups, such as `gsm8k` or `llm_adapters_commonsense`.
        batch_size: Requests in one forward pass.
        data_dir: Folder with `commonsense/`, for the LLM-Adapters sets.
        limit: At most this many examples of each task, from its start.

    Raises:
        UserError: if lm-eval is missing, or has no such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'subspace_lab[evaluation]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    metadata = {} if data_dir is None else {"data_dir": str(data_dir)}
    manager = TaskManager(
        include_path=str(TASK_FOLDER),
        include_defaults=not all(name.startswith(OWN_PREFIX) for name in tasks),
        metadata=metadata,
    )
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise UserError(f"lm-eval has no task {', '.join(unknown)}: see `lm_eval ls tasks`")
    with evaluation_mode(model):
        try:
            results = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    trust_remote_code=False,
                ),
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                log_samples=True,
            )
        except OSError as error:  # the hub's, mostly
            raise UserError(f"lm-eval cannot load {', '.join(tasks)} ({error})") from error
    return LmEvalResults(scores=_scores(results), records=_records(results["samples"]))


def _scores(results: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for name, value in values.items():
            metric, _, filter_name = name.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                {
                    "task": task,
                    "filter": filter_name,
                    "metric": metric,
                    "value": value,
                    "standard_error": error if isinstance(error, float) else float("nan"),
                    "examples": _count(results, task),
                }
            )
    return pd.DataFrame(rows)


def _count(results: dict[str, Any], task: str) -> int:
    """Examples of a task, or of all tasks in a group."""
    if task in results["n-samples"]:
        return int(results["n-samples"][task]["effective"])
    return sum(_count(results, name) for name in results["group_subtasks"][task])


def _records(samples: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": task,
            "index": sample["doc_id"],
            "filter": sample["filter"],
            "prompt_hash": prompt_hash(sample["arguments"][0][0]),
            "gold": str(sample["target"]),
            "prediction": str(sample["filtered_resps"][0]),
            **{metric: sample[metric] for metric in sample["metrics"]},
        }
        for task, rows in samples.items()
        for sample in rows
    )
