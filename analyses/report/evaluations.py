"""Scores on test examples: of each configuration, and its difference to the baseline."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.comparisons.configurations import settings_text
from analyses.comparisons.rates import OWN
from analyses.comparisons.scores import ACCURACY
from analyses.comparisons.texts import MEASURES, difference_text, mean_text
from analyses.kit.verdicts import verdict_html
from analyses.report.parts import Part
from analyses.report.tables import several, table_html
from subspace_lab.evaluation.records import read_summaries
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_interval, mean_interval, spread_text

BETTER, WORSE, WITHIN, OPEN = "better", "worse", "not beyond its interval", "no interval"
AFTER_TRAINING = {
    "exact_match": "exact_match after training",
    "response_loss": "loss after training (nats/token)",
    "calibrated_loss": "the same at the validated temperature",
}
"""Columns of a run's metrics after `test_`, and what they are."""
SHARES = ("accuracy", "exact_match", "likelihood")
"""Metrics of evaluations that are shares of right answers."""


def outcome(row: Any) -> str:
    """Say whether a difference to the baseline is beyond its interval, and for which of the two."""
    if math.isnan(row.difference_low):
        return OPEN
    if row.difference_low <= 0 <= row.difference_high:
        return WITHIN
    return BETTER if (row.difference > 0) == (row.measure == ACCURACY) else WORSE


def without_rate(table: pd.DataFrame) -> pd.Series[str]:
    """Name the configurations of paired differences, without their learning rates."""
    with_rank = table["rank"].nunique() > 1

    def name(row: pd.Series[Any]) -> str:
        text = settings_text(row.to_dict(), with_rank=with_rank)
        return f"{row['method']} ({text})" if text else str(row["method"])

    return table.apply(name, axis=1)


def differences_table(table: pd.DataFrame) -> str:
    """Render the paired differences: a row for each configuration and rate, a column a measure.

    Args:
        table: of `analyses.paired_differences`.
    """
    baseline = str(table["baseline"].iloc[0])
    measures = [measure for measure in MEASURES if measure in set(table["measure"])]
    titles = [f"{MEASURES[measure][0]} ({MEASURES[measure][1]})" for measure in measures]
    # A method's own rate can differ from measure to measure: its row names none.
    rates = table["learning_rate"].map("{:g}".format).where(table["rates"] != OWN, "its own")
    with_tasks = table["task"].nunique() > 1
    lines = []
    table = table.assign(at=rates, name=without_rate(table))
    for (name, at, task), rows in table.groupby(["name", "at", "task"], sort=False):
        by_measure = {row.measure: row for row in rows.itertuples()}
        cells = [_cell(by_measure.get(measure)) for measure in measures]
        head = [html.escape(str(name)), str(at)]
        head += [html.escape(str(task))] if with_tasks else []
        lines.append(head + cells)
    heads = ["configuration", "learning rate", *(["task"] if with_tasks else []), *titles]
    seeds, examples = int(table["seeds"].max()), int(table["examples"].min())
    below = (
        f"<p class='remark'>Means on {examples} test examples with 95 % intervals over {seeds} "
        f"seeds; below each, the paired difference to {html.escape(baseline)}, at the same "
        "learning rate or each at its own. At equal rates a difference says that one method is "
        "better <em>at that rate</em>: methods have different best rates. A method's own rate is "
        "the one with the best mean on validation examples, by the measure of the column.</p>"
    )
    return table_html(heads, lines) + below


def _cell(row: Any) -> str:
    if row is None:
        return ""
    text = html.escape(mean_text(row))
    if difference := difference_text(row):
        text += f"<br>{html.escape(difference)}<br>{verdict_html(outcome(row))}"
    return text


@dataclass(frozen=True)
class Score:
    """One score of a run on test examples."""

    task: str
    metric: str
    value: float
    examples: int
    split: str


def scores_of(run: Run) -> Iterator[Score]:
    """List a run's scores: of `subspace_lab.evaluate`, and of the end of its training."""
    for task, summary in read_summaries(run.path).items():
        split = str(summary["settings"].get("split", "test"))
        yield Score(task, summary["metric"], summary["value"], summary["examples"], split)
    last = run.metrics.iloc[-1]
    if last.get("test_examples", 0) > 0:
        task, examples = str(run.config.get("task", "")), int(last["test_examples"])
        for metric, name in AFTER_TRAINING.items():
            if (value := last.get(f"test_{metric}")) is not None:
                yield Score(task, name, float(value), examples, "test")


def scores_table(parts: Iterable[Part]) -> str:
    """Render the scores of all configurations, a column for each metric; empty without any."""
    lines: list[tuple[list[str], dict[str, str]]] = []
    for part in parts:
        for runs in part.repetitions:
            for (task, of), scores in _by_task(runs).items():
                head = [several([run.name for run in runs]), html.escape(task), html.escape(of)]
                lines.append((head, scores))
    metrics = list(dict.fromkeys(metric for _, scores in lines for metric in scores))
    heads = ["run", "task", "examples", *map(html.escape, metrics)]
    rows = [head + [scores.get(metric, "") for metric in metrics] for head, scores in lines]
    return table_html(heads, rows) if rows else ""


def _by_task(runs: Sequence[Run]) -> dict[tuple[str, str], dict[str, str]]:
    """Average the scores of repetitions by task and examples, with intervals."""
    known: dict[tuple[str, str], dict[str, list[Score]]] = {}
    for run in runs:
        for score in scores_of(run):
            place = score.task, f"{score.examples} {score.split}"
            known.setdefault(place, {}).setdefault(score.metric, []).append(score)
    return {
        place: {metric: _score_text(scores) for metric, scores in by_metric.items()}
        for place, by_metric in known.items()
    }


def _score_text(scores: Sequence[Score]) -> str:
    """Write the mean with its t interval over seeds; one share has Wilson's."""
    first, interval = scores[0], mean_interval([score.value for score in scores])
    if len(scores) == 1 and first.metric.partition(" ")[0] in SHARES:
        interval = accuracy_interval(round(first.value * first.examples), first.examples)
    spread = "" if math.isnan(interval.low) else spread_text(interval, ".3f")
    return f"{interval.estimate:.3f} {spread}".strip()
