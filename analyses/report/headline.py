"""What a report found, in a few sentences that are computed from its tables."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.comparisons.rates import EQUAL, OWN
from analyses.comparisons.scores import ACCURACY, CALIBRATED, LOSS
from analyses.comparisons.texts import MEASURES, difference_text
from analyses.mask_theory import ANALYSIS as THEORY
from analyses.paired_differences import ANALYSIS as PAIRED
from analyses.paired_differences.layout import over_all_tasks
from analyses.report.evaluations import BETTER, OPEN, WORSE, outcome, without_rate
from analyses.report.parts import Part, exhibits
from analyses.report.predictions import counted

DECISIVE = (CALIBRATED, LOSS, ACCURACY)
"""The first of these measures that a comparison has is the one that the headline reads."""
NAMED = 4  # differences or predictions; of more it says how many


def headline(
    overview: pd.DataFrame, parts: Sequence[Part], comparisons: Sequence[Path]
) -> list[str]:
    """Write three to six sentences, in HTML, with a link to the section that each is from.

    Args:
        overview: the table of the runs, from `report.compute`.
        parts: the runs.
        comparisons: folders of the tables of several runs together.
    """
    compared = [(one.title, _decisive(one.table)) for one in exhibits(PAIRED, parts, comparisons)]
    predictions = [one.table for one in exhibits(THEORY, parts, comparisons)]
    found = [
        *((sentence, PAIRED.name) for sentence in _differences(compared)),
        *((sentence, "runs") for sentence in _cost(overview)),
        *((sentence, THEORY.name) for sentence in _predictions(predictions)),
    ]
    return [
        f"{html.escape(sentence, quote=False)} <a href='#{where}'>↓</a>"
        for sentence, where in found
    ]


def _decisive(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the differences over all tasks, and the measure that the headline reads, in words."""
    measure = next(one for one in DECISIVE if one in set(table["measure"]))
    rows = over_all_tasks(table)
    rows = rows[rows["measure"] == measure]
    masks = rows["granularity"] + " masks"
    full = without_rate(rows)
    short = bool(full.groupby(masks).nunique().eq(1).all())
    return rows.assign(
        shown=masks.where(masks.notna(), full) if short else full,
        outcome=[outcome(row) for row in rows.itertuples()],
    )


def _differences(compared: Sequence[tuple[str, pd.DataFrame]]) -> Iterator[str]:
    """Say what differs from the baseline beyond its interval, what does not, and at which rates."""
    if not compared:
        yield (
            "Whether methods differ was not tested: analyses.paired_differences compares runs of "
            "several seeds with scores on test examples."
        )
        return
    own = [(whose, row) for whose, table in compared for row in _rows(table, OWN)]
    equal = [(whose, row) for whose, table in compared for row in _rows(table, EQUAL)]
    if all(row.outcome == OPEN for _, row in own + equal):
        yield (
            "Whether methods differ is not known: no difference has an interval, which takes "
            "several seeds."
        )
        return
    baseline = str(compared[0][1]["baseline"].iloc[0])
    of = f"to {baseline} in the {_measures([row for _, row in own + equal])}"
    if own:
        seeds = min(int(row.paired_seeds) for _, row in own)
        head = f"Each at its own learning rate, over {seeds} paired seeds"
        within = [one for one in own if one not in _beyond(own)]
        if beyond := _listed([_difference(*one) for one in _beyond(own)]):
            yield f"{head}, the difference {of} is beyond its 95 % interval for {beyond}."
        if within:
            least = "It is not" if beyond else f"{head}, no difference {of} is beyond its interval"
            yield f"{least} for {_listed([_difference(*one) for one in within])}."
    if equal:
        yield _at_equal_rates(equal, of="" if own else f" {of}")
    if (total := len(own) + len(equal)) > 1:
        yield (
            f"None of these {total} intervals is corrected for the number of comparisons: were "
            f"there no difference at all, {total / 20:.1f} of them would exclude zero on average."
        )


def _at_equal_rates(rows: Sequence[tuple[str, Any]], *, of: str) -> str:
    """Say how many differences are beyond their intervals, and which; of one alone how large it is.

    Args:
        rows: of which runs, and the difference.
        of: between what and in what the differences are, where no sentence said so before.
    """
    beyond = _beyond(rows)
    if len(rows) == 1:
        count = f"the difference{of} is {'' if beyond else 'not '}beyond its 95 % interval"
    else:
        count = f"{len(beyond)} of {len(rows)} differences{of} are beyond their 95 % intervals"
    named = beyond if len(rows) > 1 else rows
    listed = _listed([f"{_difference(*one)} at {one[1].learning_rate:g}" for one in named])
    return (
        f"At equal learning rates, {count}{': ' * bool(listed)}{listed}; this does not say which "
        "method is better, since methods have different best rates."
    )


def _measures(rows: Sequence[Any]) -> str:
    measures = dict.fromkeys(row.measure for row in rows)
    return " or ".join(
        f"{title.lower()} ({'points' if unit == '%' else unit})"
        for title, unit, *_ in (MEASURES[measure] for measure in measures)
    )


def _rows(table: pd.DataFrame, rates: str) -> list[Any]:
    return list(table[table["rates"] == rates].itertuples())


def _beyond(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(whose, row) for whose, row in rows if row.outcome in (BETTER, WORSE)]


def _difference(whose: str, row: Any) -> str:
    """Write a difference with its interval: of which method, and on what."""
    where = f" on {whose}" if whose else ""
    verdict = f"{row.outcome}: " if row.outcome in (BETTER, WORSE) else ""
    return f"{row.shown}{where} ({verdict}{difference_text(row)})"


def _cost(overview: pd.DataFrame) -> Iterator[str]:
    """Say how long a masked step takes beside one of LoRA, among runs that learned the same."""
    ratios: dict[str, list[float]] = {}
    for _, rows in overview.groupby("problem", sort=False):
        plain = rows[rows["granularity"].isna() & (rows["method"] == "lora")]["step_seconds"]
        masked = rows[rows["granularity"].notna()]
        if plain.notna().any():
            for kind, of_kind in masked.groupby("granularity", sort=False)["step_seconds"]:
                ratios.setdefault(str(kind), []).append(of_kind.median() / plain.median())
    if ratios:
        listed = _listed(
            [f"{_range(values)} under {kind} masks" for kind, values in ratios.items()]
        )
        yield (
            "In time, a step costs this many times one of LoRA (ratios of medians on this "
            f"machine, as busy as it was): {listed}."
        )
    else:
        yield "What masks cost in time is not known: that takes LoRA and masked runs side by side."


def _predictions(tables: Sequence[pd.DataFrame]) -> Iterator[str]:
    """Say how many predictions were tested, and which failed."""
    tested = pd.concat([counted(table) for table in tables]) if tables else pd.DataFrame()
    if tested.empty:
        yield "No prediction was tested: analyses.mask_theory compares runs with theory."
        return
    failed = tested[~tested["agrees"].astype(bool)]
    names = [f"{row.prediction} ({row.statement}) in {row.run}" for row in failed.itertuples()]
    agree = f"{len(tested) - len(failed)} of {len(tested)} comparisons with theory agree"
    yield f"{agree}; these failed: {_listed(names)}." if names else f"{agree}, and none failed."


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _listed(texts: Sequence[str]) -> str:
    """List the first few, and count the others."""
    more = len(texts) - NAMED
    shown = "; ".join(texts if more <= 1 else texts[:NAMED])
    return shown if more <= 1 else f"{shown}; and {more} others"
