"""Scores on test examples: of each configuration, and its difference to the baseline."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from analyses.comparisons.pairing import name_of
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

    return table.apply(lambda row: name_of(row.to_dict(), with_rank=with_rank), axis=1)


def differences_table(table: pd.DataFrame) -> str:
    """Render the paired differences: a row for each configuration and rate, a column a measure."""
    baseline = str(table["baseline"].iloc[0])
    measures = [measure for measure in MEASURES if measure in set(table["measure"])]
    titles = [f"{MEASURES[measure][0]} ({MEASURES[measure][1]})" for measure in measures]
    # A method's own rate can differ from measure to measure: its row names none.
    rates = table["learning_rate"].map("{:g}".format).where(table["rates"] != OWN, "its own")
    with_tasks = table["task"].nunique() > 1
    lines = []
    table = table.assign(at=rates, name=without_rate(table))
    for (name, at, task), rows in table.groupby(["name", "at", "task"], sort=False):
        cells = {row.measure: _cell(row) for row in rows.itertuples()}
        head = [html.escape(str(name)), str(at), *[html.escape(str(task))] * with_tasks]
        lines.append(head + [cells.get(measure, "") for measure in measures])
    heads = ["configuration", "learning rate", *["task"] * with_tasks, *titles]
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
    text = html.escape(mean_text(row))
    if difference := difference_text(row):
        text += f"<br>{html.escape(difference)}<br>{verdict_html(outcome(row))}"
    return text


def scores_table(parts: Iterable[Part]) -> str:
    """Render the scores of all configurations, a column for each metric; empty without any."""
    scores = pd.DataFrame(
        {"run": several([one.name for one in runs]), **score}
        for part in parts
        for runs in part.repetitions
        for run in runs
        for score in _scores_of(run)
    )
    if scores.empty:
        return ""
    scores["of"] = scores["examples"].astype(str) + " " + scores["split"]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for (*head, metric), rows in scores.groupby(["run", "task", "of", "metric"], sort=False):
        lines.setdefault(tuple(map(str, head)), {})[str(metric)] = _score_text(rows)
    metrics = list(dict.fromkeys(metric for cells in lines.values() for metric in cells))
    body = [
        [run, html.escape(task), html.escape(of), *(cells.get(name, "") for name in metrics)]
        for (run, task, of), cells in lines.items()
    ]
    return table_html(["run", "task", "examples", *map(html.escape, metrics)], body)


def _scores_of(run: Run) -> Iterator[dict[str, Any]]:
    """List a run's scores: of `subspace_lab.evaluate`, and of the end of its training."""
    for task, summary in read_summaries(run.path).items():
        known = {name: summary[name] for name in ("metric", "value", "examples")}
        yield {"task": task, **known, "split": str(summary["settings"].get("split", "test"))}
    last = run.metrics.iloc[-1]
    if last.get("test_examples", 0) > 0:
        of = {"task": str(run.config.get("task", "")), "examples": int(last["test_examples"])}
        for metric, name in AFTER_TRAINING.items():
            if (value := last.get(f"test_{metric}")) is not None:
                yield {**of, "metric": name, "value": float(value), "split": "test"}


def _score_text(scores: pd.DataFrame) -> str:
    """Write the mean with its t interval over seeds; one share has Wilson's."""
    first, interval = scores.iloc[0], mean_interval(scores["value"])
    if len(scores) == 1 and first["metric"].partition(" ")[0] in SHARES:
        correct = round(first["value"] * first["examples"])
        interval = accuracy_interval(correct, int(first["examples"]))
    return f"{interval.estimate:.3f} {spread_text(interval, '.3f')}".strip()
