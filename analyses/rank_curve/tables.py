"""The table of rank curves from the scores of every example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from analyses.rank_curve.kept_directions import ProbeScores
from analyses.rank_curve.probes import ENDS, LEFT_OUT, Curve, Probe
from subspace_lab.stats.intervals import (
    Interval,
    accuracy_interval,
    mean_interval,
    ratio_interval,
)

MEAN = -1
"""The draw of rows that hold the mean over all random orders."""


def curve_rows(
    curves: Sequence[Curve], probes: Sequence[Probe], scores: ProbeScores
) -> Iterator[dict[str, Any]]:
    """Give a row for each point of each curve, and of the mean of the random ones.

    Each has the curve's areas: integrals over the kept share k/r in [0, 1] by the trapezoid rule,
    which are linear in an example's scores, so that their intervals are over examples, too.
    """
    places = {probe: place for place, probe in enumerate(probes)}
    kept = np.array([probe.kept for probe in curves[0].probes])
    full = scores.nats[places[curves[0].probes[-1]]]
    sampled = []  # with nats and exact matches, (points, examples)
    for curve in curves:
        rows = [places[probe] for probe in curve.probes]
        exact = scores.exact[rows].astype(float)
        sampled.append((curve.name, curve.draw, scores.nats[rows], exact))
    if random := [values for name, _, *values in sampled if name == "random"]:
        sampled.append(("random", MEAN, *np.mean(random, axis=0)))
    for name, draw, nats, exact in sampled:
        area_nats, area_exact = (trapezoid(v, kept / kept[-1], axis=0) for v in (nats, exact))
        areas = {
            **_columns("cost_area", ratio_interval(area_nats - full, scores.tokens)),
            **_columns("accuracy_area", _mean_accuracy(area_exact)),
        }
        for place, count in enumerate(kept.tolist()):
            of_point = _scores(nats[place], exact[place], full, scores.tokens)
            yield {**Probe(name, count, draw)._asdict(), **of_point, **areas}


def left_out_rows(probes: Sequence[Probe], scores: ProbeScores) -> Iterator[dict[str, Any]]:
    """Give a row for each direction that was left out alone."""
    full = scores.nats[[probe.curve == ENDS and probe.kept > 0 for probe in probes]][0]
    for probe, nats, exact in zip(probes, scores.nats, scores.exact, strict=True):
        if probe.curve == LEFT_OUT:
            yield {**probe._asdict(), **_scores(nats, exact, full, scores.tokens)}


def with_evenness(table: pd.DataFrame) -> pd.DataFrame:
    """Add how even the costs of a module's directions are when each is left out alone.

    `evenness` = (sum |c_i|)^2 / (r sum c_i^2), Kish's effective number of directions over r: 1
    where all cost the same, 1/r where one costs all; nan where none costs anything.
    """
    left_out = table["curve"] == LEFT_OUT
    costs = table.loc[left_out].groupby("module")["cost"]
    return table.assign(evenness=costs.transform(evenness))


def evenness(costs: pd.Series) -> float:
    """Kish's effective number of costs, over their number.

    >>> evenness(pd.Series([2.0, 2.0])), evenness(pd.Series([0.0, 3.0]))
    (1.0, 0.5)
    """
    squares = float(costs.pow(2).sum())
    return float(costs.abs().sum() ** 2 / (len(costs) * squares)) if squares else float("nan")


def _scores(nats: Any, exact: Any, full: Any, tokens: Any) -> dict[str, float]:
    """Give the columns of scores (examples,); exact matches are shares in a mean over orders."""
    if set(exact) <= {0, 1}:
        accuracy = accuracy_interval(round(exact.sum()), len(exact))
    else:
        accuracy = _mean_accuracy(exact)
    return {
        **_columns("loss", ratio_interval(nats, tokens)),
        **_columns("cost", ratio_interval(nats - full, tokens)),
        **_columns("accuracy", accuracy),
    }


def _mean_accuracy(shares: Any) -> Interval:
    interval = mean_interval(shares)
    low, high = np.clip([interval.low, interval.high], 0, 1).tolist()
    return replace(interval, low=low, high=high)


def _columns(name: str, interval: Interval) -> dict[str, Any]:
    ends = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.estimate, **ends}
