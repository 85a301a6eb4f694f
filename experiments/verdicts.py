"""Verdicts on the paper's claims from the experiments' differences, by one rule.

A difference shows what a claim predicts of it, at level 5 %:

    below, above   supported where it differs from zero to that side, contradicted where to the
                   other, else undecided
    none           supported where its 95 % interval lies within half of step masks' own gain over
                   LoRA in the same regime, else contradicted where it differs from zero, else
                   undecided

It differs from zero by the p-value corrected by Holm: of primary comparisons as their experiment
registered it, of others over those that the claim rests on. Intervals are not corrected. A claim is

    supported           where all of its differences were measured and support it
    supported in part   where some do (of `claims.STRICT` ones: and none contradicts it)
    contradicted        where some contradict it, and it is not supported in part
    undecided           where none does either
    not tested          where none was measured
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.claims.evidence import Verdict
from analyses.claims.paper import CLAIMS
from experiments.claims import OUTCOMES, RESTS_ON, STRICT, Predicted
from experiments.comparisons import PRIMARY
from experiments.measured import measured_differences
from subspace_lab.stats.multiple import holm

LEVEL = 0.05


def verdict_table(results: Path) -> pd.DataFrame:
    """Decide on all claims of the paper; a row for each difference that one rests on.

    Args:
        results: the folder of the experiments' tables.

    Returns:
        Columns claim (name), place (in the paper), experiment, regime, comparison, outcome and
        rates (of what); predicted (below 0, above 0 or within some margin), difference, low, high,
        unit, n (paired seeds), p_holm; shows (the row's verdict), verdict (the claim's). A
        difference that was not measured has no numbers, a claim without any has one empty row.
    """
    measured = measured_differences(results)
    margins = negligible(measured)
    tables = []
    for claim in CLAIMS:
        rows = claim_rows(RESTS_ON.get(claim.name, ()), measured, margins)
        shown: list[Verdict] = [row["shows"] for row in rows]
        place = {"claim": claim.name, "place": claim.place}
        verdict = overall(shown, strict=claim.name in STRICT)
        tables += [place | row | {"verdict": verdict} for row in rows or [{}]]
    return pd.DataFrame(tables)


def negligible(measured: pd.DataFrame) -> Mapping[str, float]:
    """Give half of step masks' gain over LoRA by regime, each at its own rate."""
    gains = measured[
        (measured["comparison"] == "step - LoRA")
        & (measured["outcome"] == PRIMARY)
        & (measured["rates"] == "own")
        & measured["experiment"].isin(["x1", "x2"])
    ]
    halves = gains["difference"].abs() / 2
    return dict(zip(gains["regime"], halves, strict=True))


def claim_rows(
    predictions: Sequence[Predicted], measured: pd.DataFrame, margins: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Hold a claim's predictions against what was measured; rows of `verdict_table`."""
    pairs = [(one, row) for one in predictions for row in _matching(one, measured)]
    secondary = [
        row for _, row in pairs if _is_known(row["p_value"]) and not _is_known(row["holm"])
    ]
    for row, adjusted in zip(secondary, holm([row["p_value"] for row in secondary]), strict=True):
        row["holm"] = float(adjusted)
    return [_decided(prediction, row, margins) for prediction, row in pairs]


def _matching(prediction: Predicted, measured: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Give the differences that a prediction is about; without numbers where not measured."""
    place = {
        name: getattr(prediction, name) for name in ("experiment", "comparison", "outcome", "rates")
    }
    rows = measured
    for name, value in place.items():
        rows = rows[rows[name] == value]
    for regime in prediction.regimes:
        of_regime = rows[rows["regime"] == regime]
        missing = place | {"regime": regime, "p_value": math.nan, "holm": math.nan}
        yield missing if of_regime.empty else {**of_regime.iloc[0]}


def _decided(
    prediction: Predicted, row: Mapping[str, Any], margins: Mapping[str, float]
) -> dict[str, Any]:
    outcome = OUTCOMES[prediction.outcome]
    margin = margins.get(row["regime"], math.nan)
    numbers = {
        name: outcome.scale * row.get(name, math.nan) for name in ("difference", "low", "high")
    }
    return {
        "experiment": row["experiment"],
        "regime": row["regime"],
        "comparison": row["comparison"],
        "outcome": outcome.name,
        "rates": row["rates"],
        "predicted": _in_words(prediction.sign, margin),
        **numbers,
        "unit": outcome.unit,
        "n": row.get("pairs", math.nan),
        "p_holm": row["holm"],
        "shows": shows(prediction.sign, **numbers, p_value=row["holm"], margin=margin),
    }


def shows(
    sign: str, *, difference: float, low: float, high: float, p_value: float, margin: float
) -> Verdict:
    """Say what a difference shows of a prediction.

    Args:
        sign: of `Predicted`.
        difference: the estimate; nan where it was not measured.
        low: lower end of its interval.
        high: upper end.
        p_value: corrected.
        margin: up to which a difference is none, in the difference's unit.
    """
    if math.isnan(difference):
        return "not tested"
    if sign == "none" and -margin < low and high < margin:
        return "supported"
    if not p_value < LEVEL:
        return "undecided"
    found = "above" if difference > 0 else "below"
    return "supported" if found == sign else "contradicted"


def overall(shown: Collection[Verdict], *, strict: bool = False) -> Verdict:
    """Join what a claim's differences show.

    Args:
        shown: of each difference.
        strict: whether one contradiction refutes the claim, whatever else supports it.
    """
    found = set(shown)
    if found <= {"not tested"}:
        return "not tested"
    if found == {"supported"}:
        return "supported"
    if "contradicted" in found and (strict or "supported" not in found):
        return "contradicted"
    return "supported in part" if "supported" in found else "undecided"


def _in_words(sign: str, margin: float) -> str:
    return f"{sign} 0" if sign != "none" else f"within ±{margin:.3f}" if margin > 0 else "none"


def _is_known(number: float) -> bool:
    return not math.isnan(number)
