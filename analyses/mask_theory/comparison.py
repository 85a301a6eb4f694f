"""Ways to compare what theory predicts with what was measured, with their power.

An `exact` comparison allows rounding only. A `sampling` one is about random masks (or a random
start), and allows what chance does in 9,999 of 10,000 correct runs, by the quantiles of the
statistic's law. Both agree or disagree, and state their power: the smallest deviation that they
would notice in at least 80 % of runs of this size. One that could notice none has power inf, and
gets no verdict. An `indicative` comparison rests on assumptions that a real run does not meet; its
tolerance is only a scale to read the distance by, and it gets no verdict either.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analyses.mask_theory.laws import LEVEL, POWER

Kind = Literal["exact", "sampling", "indicative"]

ROUNDING = 1e-9


class NotTestableError(Exception):
    """A record does not allow a comparison; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A prediction beside a measurement.

    Attributes:
        kind: `exact`, `sampling` or `indicative`.
        predicted: what theory says; of an indicative comparison, under its assumptions.
        measured: what the run shows.
        tolerance: largest |measured - predicted| that counts as agreement, on the side of
            `measured`: limits of chance need not lie at equal distances.
        basis: where the tolerance comes from; of an indicative comparison, why it is only that.
        samples: number of draws, directions or cores behind `measured`.
        power: smallest deviation that would be noticed in at least 80 % of runs of this size; inf:
            none would; nan: indicative.
        unit: what `power` is measured in.
        probability: of a deviation as large as this one by chance; nan unless sampling.
    """

    kind: Kind
    predicted: float
    measured: float
    tolerance: float
    basis: str
    samples: int
    power: float = math.nan
    unit: str = ""
    probability: float = math.nan

    @property
    def agrees(self) -> bool | None:
        """Whether it agrees; None for an indicative one, and for one that cannot fail."""
        if self.kind == "indicative" or self.power == math.inf:
            return None
        rounding = ROUNDING * max(1.0, abs(self.predicted))
        return bool(abs(self.measured - self.predicted) <= self.tolerance + rounding)


indicative = functools.partial(Comparison, "indicative")


def no_exceptions(exceptions: ArrayLike) -> Comparison:
    """Compare with the prediction that no case, of any shape, is an exception (True)."""
    cases = np.asarray(exceptions)
    power = 1 - (1 - POWER) ** (1 / cases.size) if cases.size else math.inf
    basis = _qualified("exceptions, none allowed", power)
    unit = "share of cases that break the rule"
    return Comparison("exact", 0, cases.sum(), 0, basis, cases.size, power, unit)


def within_rounding(
    predicted: float, measured: float, *, tolerance: float, basis: str, samples: int
) -> Comparison:
    """Compare with a number that holds up to rounding, or up to a stated tolerance."""
    power, unit = tolerance, "of measured"
    return Comparison("exact", predicted, measured, tolerance, basis, samples, power, unit)


def within_limits(
    predicted: float,
    measured: float,
    *,
    limits: tuple[float, float],
    probability: float,
    power: float,
    unit: str,
    basis: str,
    samples: int,
) -> Comparison:
    """Compare with a random number by the limits of chance around it."""
    low, high = limits
    tolerance = high - predicted if measured >= predicted else predicted - low
    basis = _qualified(f"{basis}, at {LEVEL:g}", power)
    return Comparison(
        "sampling", predicted, measured, tolerance, basis, samples, power, unit, probability
    )


def _qualified(basis: str, power: float) -> str:
    return f"cannot fail at this size: {basis}" if power == math.inf else basis
