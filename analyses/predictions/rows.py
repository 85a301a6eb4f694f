"""Rows of the table of predictions: what theory says, what was measured, how far apart they may be.

There are three kinds. An `exact` prediction allows rounding only. A `sampling` prediction is a
mean or a count over random masks (or a random start), and allows what chance does once in some
10,000 times: four standard errors, or the quantiles of the exact law at that level. Both agree or
disagree. An `indicative` prediction rests on assumptions that a real run does not meet; its
tolerance is only a scale to read the distance by, and it gets no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Kind = Literal["exact", "sampling", "indicative"]

STANDARD_ERRORS = 4.0
LEVEL = 1e-4
LEAST_EXPECTED = 5.0  # in a cell of a chi-square test
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One prediction against one group of modules of a run.

    Attributes:
        prediction: its name.
        statement: number of the theorem in docs/theory.md.
        kind: `exact`, `sampling` or `indicative`.
        predicted: what theory says.
        measured: what the run shows.
        tolerance: largest |measured - predicted| that counts as agreement.
        basis: where the tolerance comes from; of an indicative row, why it is only that.
        samples: number of draws, directions or cores behind `measured`.
        meaning: what a disagreement would mean.
    """

    prediction: str
    statement: str
    kind: Kind
    predicted: float
    measured: float
    tolerance: float
    basis: str
    samples: int
    meaning: str

    @property
    def agrees(self) -> bool | None:
        """Whether it agrees; None for an indicative row."""
        if self.kind == "indicative":
            return None
        rounding = ROUNDING * max(1.0, abs(self.predicted))
        return abs(self.measured - self.predicted) <= self.tolerance + rounding


@dataclass(frozen=True)
class Prediction:
    """A prediction, and the ways to hold it against what was measured.

    Attributes:
        name: short, unique.
        statement: number of the theorem.
        meaning: what a disagreement would mean.
    """

    name: str
    statement: str
    meaning: str

    def never(self, exceptions: ArrayLike) -> Row:
        """Predict that no case is an exception.

        Args:
            exceptions: of any shape, True where a case breaks the rule.
        """
        import numpy as np

        cases = np.asarray(exceptions)
        return self._row("exact", 0, cases.sum(), 0, "exceptions, none allowed", cases.size)

    def equal(
        self, predicted: float, measured: float, *, tolerance: float, basis: str, samples: int
    ) -> Row:
        """Predict a number up to rounding."""
        return self._row("exact", predicted, measured, tolerance, basis, samples)

    def drawn(
        self, predicted: float, measured: float, *, tolerance: float, basis: str, samples: int
    ) -> Row:
        """Predict the mean of a random number, up to what chance allows."""
        return self._row("sampling", predicted, measured, tolerance, basis, samples)

    def mean(self, values: ArrayLike, *, expected: float, variance: float) -> Row:
        """Predict the mean of independent draws of a known variance.

        Args:
            values: the draws, of any shape.
            expected: their predicted mean.
            variance: predicted variance of one draw, or the average where draws differ.
        """
        import numpy as np

        draws = np.asarray(values, dtype=float)
        tolerance = STANDARD_ERRORS * math.sqrt(variance / draws.size)
        basis = "4 standard errors, from the predicted variance"
        return self._row("sampling", expected, draws.mean(), tolerance, basis, draws.size)

    def empirical_mean(self, values: ArrayLike, *, expected: float) -> Row:
        """Predict the mean of independent draws; their variance is taken from them."""
        import numpy as np

        draws = np.asarray(values, dtype=float)
        tolerance = STANDARD_ERRORS * draws.std() / math.sqrt(draws.size)
        basis = "4 standard errors, from the draws' own variance"
        return self._row("sampling", expected, draws.mean(), tolerance, basis, draws.size)

    def count(self, events: ArrayLike, *, probability: float) -> Row:
        """Predict how many of N independent events happen, each with `probability`."""
        import numpy as np
        from scipy import stats

        happened = np.asarray(events)
        law = stats.binom(happened.size, probability)
        low, high = law.ppf([LEVEL / 2, 1 - LEVEL / 2])
        expected = happened.size * probability
        tolerance = max(expected - low, high - expected, 0.5)
        basis = f"binomial quantiles at {LEVEL:g}"
        return self._row("sampling", expected, happened.sum(), tolerance, basis, happened.size)

    def law(self, counts: ArrayLike, *, pmf: NDArray[np.float64]) -> Iterator[Row]:
        """Predict the law of whole numbers by Pearson's chi-square; no row where draws are few.

        Neighbouring values are pooled until at least 5 draws are expected in each cell.

        Args:
            counts: independent draws, of any shape.
            pmf: predicted P(0), P(1), ...
        """
        import numpy as np

        draws = np.asarray(counts).ravel()
        expected = pmf * draws.size
        observed = np.bincount(draws, minlength=len(pmf))
        cells, gathered = [], np.zeros(2)
        for pair in zip(expected, observed, strict=True):
            gathered = gathered + pair
            if gathered[0] >= LEAST_EXPECTED:
                cells.append(gathered)
                gathered = np.zeros(2)
        if len(cells) > 1:
            cells[-1] = cells[-1] + gathered
            e, o = np.array(cells).T
            yield self.chi_square(
                ((o - e) ** 2 / e).sum(), freedom=len(cells) - 1, samples=len(draws)
            )

    def chi_square(self, statistic: float, *, freedom: int, samples: int) -> Row:
        """Predict a chi-square statistic: its mean, up to the quantile of the law."""
        from scipy import stats

        tolerance = stats.chi2.isf(LEVEL, freedom) - freedom
        basis = f"chi-square quantile at {LEVEL:g}, {freedom} degrees of freedom"
        return self._row("sampling", freedom, statistic, tolerance, basis, samples)

    def indicative(
        self, predicted: float, measured: float, *, scale: float, why: str, samples: int
    ) -> Row:
        """Set a prediction beside a measurement that it need not match.

        Args:
            predicted: what theory says under its assumptions.
            measured: what the run shows.
            scale: distance that would count as close, to draw it by.
            why: why there is no verdict.
            samples: as in `Row`.
        """
        return self._row("indicative", predicted, measured, scale, why, samples)

    def _row(
        self,
        kind: Kind,
        predicted: float,
        measured: float,
        tolerance: float,
        basis: str,
        samples: int,
    ) -> Row:
        numbers = (float(predicted), float(measured), float(tolerance))
        return Row(self.name, self.statement, kind, *numbers, basis, int(samples), self.meaning)


def moments(pmf: NDArray[np.float64], values: ArrayLike | None = None) -> tuple[float, float]:
    """Mean and variance of a law given as P(0), P(1), ..., or of a function of it.

    Args:
        pmf: probabilities, which must sum to 1.
        values: what the outcomes count as; None: 0, 1, ...
    """
    import numpy as np

    outcomes = np.arange(len(pmf)) if values is None else np.asarray(values)
    mean = float(pmf @ outcomes)
    return mean, float(pmf @ (outcomes - mean) ** 2)
