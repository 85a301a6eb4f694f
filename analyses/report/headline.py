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
from analyses.report.parts import Exhibit, Part, exhibits
from analyses.report.tables import some
from analyses.report.theorems import counted

DECISIVE = (CALIBRATED, LOSS, ACCURACY)
"""The first of these measures that a comparison has is the one that the headline reads."""
BEYOND = (BETTER, WORSE)
NAMED = 4  # differences or predictions; of more it says how many


def headline(
    overview: pd.DataFrame, parts: Sequence[Part], comparisons: Sequence[Path]
) -> list[str]:
    """Write three to six sentences, in HTML, with a link to the section that each is from.

    `overview` is the table of `report.compute`.
    """
    compared = [_decisive(one) for one in exhibits(PAIRED, parts, comparisons)]
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


def _decisive(exhibit: Exhibit) -> pd.DataFrame:
    """Keep the differences over all tasks, and the measure that the headline reads, in words."""
    measure = next(one for one in DECISIVE if one in set(exhibit.table["measure"]))
    rows = over_all_tasks(exhibit.table)
    rows = rows[rows["measure"] == measure]
    masks = rows["granularity"] + " masks"
    full = without_rate(rows)
    short = bool(full.groupby(masks).nunique().eq(1).all())
    shown = masks.where(masks.notna(), full) if short else full
    return rows.assign(
        shown=shown + (f" on {exhibit.title}" if exhibit.title else ""),
        outcome=[outcome(row) for row in rows.itertuples()],
    )


def _differences(compared: Sequence[pd.DataFrame]) -> Iterator[str]:
    """Say what differs from the baseline beyond its interval, what does not, and at which rates."""
    if not compared:
        yield (
            "Whether methods differ was not tested: analyses.paired_differences compares runs of "
            "several seeds with scores on test examples."
        )
        return
    rows: list[Any] = [row for table in compared for row in table.itertuples()]
    own, equal = ([row for row in rows if row.rates == rates] for rates in (OWN, EQUAL))
    if all(row.outcome == OPEN for row in rows):
        yield (
            "Whether methods differ is not known: no difference has an interval, which takes "
            "several seeds."
        )
        return
    baseline = str(compared[0]["baseline"].iloc[0])
    measures = (MEASURES[name] for name in dict.fromkeys(row.measure for row in own + equal))
    named = (
        f"{title.lower()} ({'points' if unit == '%' else unit})" for title, unit, *_ in measures
    )
    of = f"to {baseline} in the {' or '.join(named)}"
    if own:
        seeds = min(int(row.paired_seeds) for row in own)
        head = f"Each at its own learning rate, over {seeds} paired seeds"
        within = [row for row in own if row.outcome not in BEYOND]
        if beyond := _listed([_difference(row) for row in own if row.outcome in BEYOND]):
            yield f"{head}, the difference {of} is beyond its 95 % interval for {beyond}."
        if within:
            least = "It is not" if beyond else f"{head}, no difference {of} is beyond its interval"
            yield f"{least} for {_listed([_difference(row) for row in within])}."
    if equal:
        yield _at_equal_rates(equal, of="" if own else f" {of}")
    if (total := len(rows)) > 1:
        yield (
            f"None of these {total} intervals is corrected for the number of comparisons: were "
            f"there no difference at all, {total / 20:.1f} of them would exclude zero on average."
        )


def _at_equal_rates(rows: Sequence[Any], *, of: str) -> str:
    """Say how many differences are beyond their intervals, and which; of one alone how large it is.

    `of` says between what and in what the differences are, where no sentence said so before.
    """
    beyond = [row for row in rows if row.outcome in BEYOND]
    if len(rows) == 1:
        count = f"the difference{of} is {'' if beyond else 'not '}beyond its 95 % interval"
    else:
        count = f"{len(beyond)} of {len(rows)} differences{of} are beyond their 95 % intervals"
    named = beyond if len(rows) > 1 else rows
    listed = _listed([f"{_difference(row)} at {row.learning_rate:g}" for row in named])
    return (
        f"At equal learning rates, {count}{': ' * bool(listed)}{listed}; this does not say which "
        "method is better, since methods have different best rates."
    )


def _difference(row: Any) -> str:
    """Write a difference with its interval: of which method, and on what."""
    verdict = f"{row.outcome}: " if row.outcome in BEYOND else ""
    return f"{row.shown} ({verdict}{difference_text(row)})"


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
    return some(texts, NAMED, joined="; ", others="; and")
