"""Evaluation results in a run folder: per-example tables and one summary.

    RUN/evaluations/TASK.parquet     one row per example
    RUN/evaluations/summary.json     one row per task, by its name

Evaluating a task again replaces its table and its row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock

from subspace_lab.recording import files

if TYPE_CHECKING:
    from subspace_lab.tasks import Example

FOLDER = "evaluations"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """One task's result: a mean over examples with its standard error."""

    task: str
    metric: str  # what the mean is of: exact_match, accuracy, pass@1, mt_bench_score ...
    value: float
    standard_error: float | None  # sample standard deviation / sqrt(examples); None for one example
    examples: int  # that the mean is over
    step: int | None = None  # optimizer step of the adapter; None for a model of no run
    settings: Mapping[str, Any] = field(default_factory=dict)


def prompt_hash(prompt: str) -> str:
    """First 16 hex digits of the prompt's SHA-256: the same example, whatever its index."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def example_records(
    examples: Sequence[Example],
    *,
    gold: Sequence[str],
    prediction: Sequence[str],
    correct: Sequence[bool],
    loss: Sequence[float] | None = None,
    tokens: Sequence[int] | None = None,
) -> pd.DataFrame:
    """One row per example.

    Columns: `task`, `index` (in the set that was evaluated), `prompt_hash`, `gold`, `prediction`,
    `correct`, `loss` (nats per response token, nan where none was computed), `tokens`.
    """
    return pd.DataFrame(
        {
            "task": [example.task for example in examples],
            "index": range(len(examples)),
            "prompt_hash": [prompt_hash(example.prompt) for example in examples],
            "gold": list(gold),
            "prediction": list(prediction),
            "correct": list(correct),
            "loss": [float("nan")] * len(examples) if loss is None else list(loss),
            "tokens": pd.array(
                [None] * len(examples) if tokens is None else list(tokens), dtype="Int64"
            ),
        }
    )


def summarise(
    records: pd.DataFrame,
    *,
    task: str,
    metric: str,
    column: str = "correct",
    step: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Mean and standard error of a column over the examples that have a value in it."""
    values = records[column].dropna().to_numpy(dtype=float)
    standard_error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Summary(
        task, metric, float(values.mean()), standard_error, len(values), step, dict(settings or {})
    )


def write(run: Path | str, records: pd.DataFrame, summary: Summary) -> Path:
    """Write the table and the summary row into the run folder; give back the table's path.

    Both files are replaced whole, so a reader never sees half of one; a lock keeps evaluations
    that end at the same time from losing each other's rows.
    """
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{summary.task}.parquet"
    with FileLock(folder / ".lock"):
        files.write_table(table, records)
        files.write_json(folder / SUMMARY, {**read_summaries(run), summary.task: asdict(summary)})
    return table


def read_summaries(run: Path | str) -> dict[str, dict[str, Any]]:
    """Summary rows of a run by task; empty for a run that was never evaluated."""
    path = Path(run) / FOLDER / SUMMARY
    return files.read_json(path) if path.is_file() else {}
