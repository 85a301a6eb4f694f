"""Evaluation results in a run folder: per-example tables and one summary.

    RUN/evaluations/TASK.parquet     one row per example
    RUN/evaluations/summary.json     one row per task, by its name
    RUN/evaluations/replaced/        results superseded by an evaluation with other settings

These are test examples after the last step, which comparisons of runs read. Other snapshots and
other examples have folders like it, RUN/evaluations/step-10 and RUN/evaluations/validation.
Evaluating a task again in the same way replaces its table and its row; in another way (metric,
settings or examples), they move to `replaced` first.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from subspace_lab import files
from subspace_lab.stats.intervals import accuracy_interval, mean_interval
from subspace_lab.tasks.examples import Example

FOLDER = "evaluations"
SUMMARY = "summary.json"
REPLACED = "replaced"
OUTCOMES = ("first_turn", "second_turn", "unscored")
"""What mt_bench keeps among the settings though it is a result."""


@dataclass(frozen=True)
class Summary:
    """One task's result: a mean over examples with its standard error and 95 % interval.

    The interval of a share of right answers is Wilson's, which has a width at 0 and 100 %, too;
    that of other means is Student's t. Both cover the sampling of examples only.
    """

    task: str
    metric: str  # what the mean is of: exact_match, accuracy, pass@1, mt_bench_score ...
    value: float
    standard_error: float | None  # sample standard deviation / sqrt(examples); None for one example
    examples: int  # that the mean is over
    step: int | None = None  # optimizer step of the adapter; None: not from a run
    settings: Mapping[str, Any] = field(default_factory=dict)
    low: float | None = None  # of the interval; None where none was computed
    high: float | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)
    """Where probabilities were computed: `Calibration.summary()`, of response tokens (exact_match)
    or of choices (likelihood)."""


def prompt_hash(prompt: str) -> str:
    """First 16 hex digits of the prompt's SHA-256: the same example, whatever its index."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def file_name(task: str) -> str:
    """Name a task's files, whatever its own name.

    >>> file_name("lm_eval:piqa"), file_name("../data/mine.jsonl")
    ('lm_eval-piqa', 'data-mine.jsonl')
    """
    return task.replace(":", "-").replace("/", "-").lstrip("-.")


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


def summarize(
    records: pd.DataFrame,
    *,
    task: str,
    metric: str,
    column: str = "correct",
    step: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Summary:
    """Mean, standard error and interval of a column over the examples that have a value in it."""
    values = records[column].dropna().to_numpy(dtype=float)
    count = len(values)
    standard_error = float(values.std(ddof=1) / count**0.5) if count > 1 else None
    right = values == 1
    if (right | (values == 0)).all():
        interval = accuracy_interval(int(right.sum()), count)
    else:
        interval = mean_interval(values)
    return Summary(
        task,
        metric,
        float(values.mean()),
        standard_error,
        count,
        step,
        dict(settings or {}),
        low=_known(interval.low),
        high=_known(interval.high),
    )


def _known(number: Any) -> float | None:
    return None if math.isnan(number) else float(number)


def write(
    run: Path | str, records: pd.DataFrame, summary: Summary, *, part: str = ""
) -> tuple[Path, Path | None]:
    """Write the table and the summary row into the run folder.

    All files are replaced whole, so a reader never sees half of one; a lock keeps evaluations
    that end at the same time from losing each other's results.

    Args:
        run: the run folder.
        records: one row per example.
        summary: of the records; what is not finite in it becomes null.
        part: folder in RUN/evaluations for other snapshots than the last and other examples than
            test.

    Returns:
        The table's path, and that of an earlier one which was measured in another way or on other
        examples, if any.
    """
    folder = Path(run) / FOLDER / part
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{summary.task}.parquet"
    row = files.finite(asdict(summary))
    with FileLock(folder / ".lock"):
        rows = read_summaries(run, part=part)
        earlier, replaced = rows.get(summary.task), None
        if earlier is not None and table.is_file():
            same_examples = _prompts(files.read_table(table)) == _prompts(records)
            if not same_examples or way_of_measuring(earlier) != way_of_measuring(row):
                replaced = _keep(table, earlier)
        files.write_table(table, records)
        files.write_json(folder / SUMMARY, {**rows, summary.task: row})
    return table, replaced


def read_summaries(run: Path | str, *, part: str = "") -> dict[str, dict[str, Any]]:
    """Summary rows of a run (or of a part, see `write`) by task; empty if it has none."""
    path = Path(run) / FOLDER / part / SUMMARY
    return files.read_json(path) if path.is_file() else {}


def way_of_measuring(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a summary row says about how it was measured: metric, step and settings.

    The dtype is `unknown` in a row of an earlier version, whose dtype was the machine's choice.
    """
    settings = {key: value for key, value in row["settings"].items() if key not in OUTCOMES}
    return {"metric": row["metric"], "step": row["step"], "dtype": "unknown", **settings}


def _prompts(records: pd.DataFrame) -> list[Any]:
    """Which examples were evaluated (their numbers, where the table does not say)."""
    return list(records.get("prompt_hash", range(len(records))))


def _keep(table: Path, row: Mapping[str, Any]) -> Path:
    """Copy a table with its summary row to where no other evaluation writes."""
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]
    kept = table.parent / REPLACED / f"{table.stem}-{row['metric']}-{digest}.parquet"
    with files.replacing(kept) as unfinished:
        shutil.copyfile(table, unfinished)
    files.write_json(kept.with_suffix(".json"), row)
    return kept
