"""The table of rank curves from the scores of every example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.integrate import trapezoid

from analyses.rank_curve.probes import ENDS, LEFT_OUT, Curve, Probe
from analyses.rank_curve.scoring import ProbeScores
from subspace_lab.stats.intervals import (
    Interval,
    accuracy_interval,
    mean_interval,
    ratio_interval,
)

Values = Float64[np.ndarray, "points examples"]
MEAN = -1
"""The draw of rows that hold the mean over all random orders."""


def curve_rows(
    curves: Sequence[Curve], probes: Sequence[Probe], scores: ProbeScores
) -> Iterator[dict[str, Any]]:
    """Give a row for each point of each curve, and of the mean of the random ones."""
    places = {probe: place for place, probe in enumerate(probes)}
    random: list[tuple[Values, Values]] = []
    kept = [probe.kept for probe in curves[0].probes]
    full = scores.nats[places[curves[0].probes[-1]]]
    for curve in curves:
        rows = [places[probe] for probe in curve.probes]
        nats, exact = scores.nats[rows], scores.exact[rows].astype(float)
        if curve.name == "random":
            random.append((nats, exact))
        yield from _points(curve.name, curve.draw, kept, nats, exact, full, scores.tokens)
    if random:
        nats, exact = (np.mean(values, axis=0) for values in zip(*random, strict=True))
        yield from _points("random", MEAN, kept, nats, exact, full, scores.tokens)


def left_out_rows(probes: Sequence[Probe], scores: ProbeScores) -> Iterator[dict[str, Any]]:
    """Give a row for each direction that was left out alone."""
    full = scores.nats[[probe.curve == ENDS and probe.kept > 0 for probe in probes]][0]
    for place, probe in enumerate(probes):
        if probe.curve == LEFT_OUT:
            nats, exact = scores.nats[place], scores.exact[place].astype(float)
            labels = _labels(LEFT_OUT, probe.kept, MEAN, probe.module, probe.direction)
            yield {
                **labels,
                **_scores(nats, exact, full, scores.tokens),
            }


def with_evenness(table: pd.DataFrame) -> pd.DataFrame:
    """Add how even the costs of a module's directions are when each is left out alone.

    `evenness` = (sum |c_i|)^2 / (r sum c_i^2), Kish's effective number of directions over r: 1
    where all cost the same, 1/r where one costs all; nan where none costs anything.
    """
    left_out = table["curve"] == LEFT_OUT
    table["evenness"] = np.nan
    costs = table.loc[left_out].groupby("module")["cost"]
    table.loc[left_out, "evenness"] = costs.transform(evenness)
    return table


def evenness(costs: pd.Series) -> float:
    """Kish's effective number of costs, over their number.

    >>> evenness(pd.Series([2.0, 2.0])), evenness(pd.Series([0.0, 3.0]))
    (1.0, 0.5)
    """
    squares = float(costs.pow(2).sum())
    return float(costs.abs().sum() ** 2 / (len(costs) * squares)) if squares else float("nan")


def _points(
    curve: str,
    draw: int,
    kept: Sequence[int],
    nats: Values,
    exact: Values,
    full: Float64[np.ndarray, " examples"],
    tokens: Any,
) -> Iterator[dict[str, Any]]:
    """Give the points of one curve, each with the curve's areas.

    An area is the integral over the kept share k/r in [0, 1] by the trapezoid rule; it is linear in
    an example's scores, so that its interval is one over examples, too.
    """
    share = np.array(kept) / kept[-1]
    area_nats, area_exact = (trapezoid(values, share, axis=0) for values in (nats, exact))
    areas = {
        **_interval("cost_area", ratio_interval(area_nats - full, tokens)),
        **_interval("accuracy_area", _within_0_and_1(mean_interval(area_exact))),
    }
    for place, count in enumerate(kept):
        yield {
            **_labels(curve, count, draw),
            **_scores(nats[place], exact[place], full, tokens),
            **areas,
        }


def _labels(
    curve: str, kept: int, draw: int, module: str = "", direction: int = -1
) -> dict[str, Any]:
    return {
        "curve": curve, "kept": kept, "draw": draw, "module": module, "direction": direction,
    }  # fmt: skip


def _scores(nats: Any, exact: Any, full: Any, tokens: Any) -> Mapping[str, float]:
    if set(exact) <= {0.0, 1.0}:
        accuracy = accuracy_interval(round(exact.sum()), len(exact))
    else:
        accuracy = _within_0_and_1(mean_interval(exact))
    return {
        **_interval("loss", ratio_interval(nats, tokens)),
        **_interval("cost", ratio_interval(nats - full, tokens)),
        **_interval("accuracy", accuracy),
    }


def _within_0_and_1(interval: Interval) -> Interval:
    low, high = np.clip([interval.low, interval.high], 0, 1).tolist()
    return Interval(interval.estimate, low, high, interval.level, interval.count)


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {
        name: float(interval.estimate),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }
