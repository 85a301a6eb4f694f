"""What the registered experiments found of each claim (docs/experiments/REGISTER.md).

`registered.csv` is a copy of docs/experiments/results/claims.csv, which `python -m experiments
claims` writes; so an installed package has it, too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.claims.evidence import range_of

FILE = Path(__file__).with_name("registered.csv")
NAMES = {"finer": "the finer grid of rates"}
"""Of experiments that have no number."""


def verdict_of(claim: str) -> str:
    """Give the experiments' verdict on a claim."""
    return str(_rows(claim)["verdict"].iloc[0])


def found_of(claim: str) -> str:
    """Say what the experiments found of a claim, with effects, intervals and sample sizes.

    Where it does not say so, each method has its own learning rate; p-values are Holm's. Empty
    where they did not test it.
    """
    rows = _rows(claim)
    measured = rows[rows["difference"].notna()]
    if measured.empty:
        return ""
    texts = []
    for (experiment, comparison, outcome, rates), alike in measured.groupby(
        ["experiment", "comparison", "outcome", "rates"], sort=False
    ):
        at = "" if rates == "own" else ", at LoRA's learning rate"
        numbers = ", ".join(map(_difference, alike.itertuples()))
        unit, n = alike["unit"].iloc[0], range_of(alike["n"], ".0f")
        name = NAMES.get(str(experiment), str(experiment).upper())
        head = f"{name}, {comparison}, {outcome}{at}"
        texts.append(f"{head}: {numbers} {unit} (n = {n})")
    missing = len(rows) - len(measured)
    left = f" Registered, but not yet made: {missing} more." if missing else ""
    return f"{'; '.join(texts)}.{left}"


@cache
def registered() -> pd.DataFrame:
    """Read the experiments' verdicts, of `experiments.verdicts.verdict_table`."""
    return pd.read_csv(FILE)


def form_of(unit: str) -> str:
    """Give the format of differences in a unit.

    >>> f"{5.97:{form_of('points')}} points, {-0.0561:{form_of('nats per token')}} nats"
    '+6.0 points, -0.056 nats'
    """
    return {"points": "+.1f", "directions": "+.2f"}.get(unit, "+.3f")


def _rows(claim: str) -> pd.DataFrame:
    return registered().query("claim == @claim")


def _difference(row: Any) -> str:
    """Write a difference with its regime, interval and p-value."""
    form = form_of(row.unit)
    difference, low, high = (f"{number:{form}}" for number in (row.difference, row.low, row.high))
    return f"in {row.regime} {difference} [{low}, {high}] (p = {row.p_holm:.2g})"
