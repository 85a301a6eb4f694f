"""Rows of the table of predictions: what theory says, what was measured, how far apart they may be.

There are three kinds. An `exact` prediction allows rounding only. A `sampling` prediction is about
random masks (or a random start), and allows what chance does in 9,999 of 10,000 right runs, by the
quantiles of the statistic's law. Both agree or disagree, and state their power: the smallest
deviation that they would notice in at least 80 % of runs of this size. One that could notice none
has power inf, and says nothing. An `indicative` prediction rests on assumptions that a real run
does not meet; its tolerance is only a scale to read the distance by, and it gets no verdict.

And there are five things that a row can test. Only rows about `training` say whether the run was
trained as it claims; `masks drawn` test the random generator behind the record of masks,
`initialization` the weights at step 0, `trained model` what the final weights do, and an `identity`
holds for any weights and masks, so that it tests the code that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from analyses.predictions.laws import LEVEL, POWER, Law, law_of_cumulants, law_of_sum

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Kind = Literal["exact", "sampling", "indicative"]
Tests = Literal["training", "masks drawn", "initialization", "trained model", "identity"]

LEAST_EXPECTED = 5.0  # in a cell of a chi-square test
FEW_CELLS = 10  # of a chi-square test, which is then one-sided
ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One prediction against one group of modules of a run.

    Attributes:
        prediction: its name.
        statement: number of the theorem in docs/theory.md.
        tests: what a disagreement would be about.
        kind: `exact`, `sampling` or `indicative`.
        predicted: what theory says.
        measured: what the run shows.
        tolerance: largest |measured - predicted| that counts as agreement, on the side of
            `measured`: limits of chance need not lie at equal distances.
        basis: where the tolerance comes from; of an indicative row, why it is only that.
        samples: number of draws, directions or cores behind `measured`.
        meaning: what a disagreement would mean.
        power: smallest deviation that would be noticed in at least 80 % of runs of this size; inf:
            none would; nan: indicative.
        unit: what `power` is measured in.
        probability: of a deviation as large as this one by chance; nan unless sampling.
    """

    prediction: str
    statement: str
    tests: Tests
    kind: Kind
    predicted: float
    measured: float
    tolerance: float
    basis: str
    samples: int
    meaning: str
    power: float = math.nan
    unit: str = ""
    probability: float = math.nan

    @property
    def agrees(self) -> bool | None:
        """Whether it agrees; None for an indicative row, and for one that cannot fail."""
        if self.kind == "indicative" or self.power == math.inf:
            return None
        rounding = ROUNDING * max(1.0, abs(self.predicted))
        return abs(self.measured - self.predicted) <= self.tolerance + rounding


@dataclass(frozen=True)
class Prediction:
    """A prediction, and the ways to hold it against what was measured.

    Attributes:
        name: short, unique.
        statement: number of the theorem.
        tests: what a disagreement would be about.
        meaning: what a disagreement would mean.
    """

    name: str
    statement: str
    tests: Tests
    meaning: str

    def never(self, exceptions: ArrayLike) -> Row:
        """Predict that no case is an exception.

        Args:
            exceptions: of any shape, True where a case breaks the rule.
        """
        import numpy as np

        cases = np.asarray(exceptions)
        share = 1 - (1 - POWER) ** (1 / cases.size) if cases.size else math.inf
        return self._row(
            "exact", 0, cases.sum(), 0, "exceptions, none allowed", cases.size,
            power=share, unit="share of cases that break the rule",
        )  # fmt: skip

    def equal(
        self,
        predicted: float,
        measured: float,
        *,
        tolerance: float,
        basis: str,
        samples: int,
        unit: str = "of measured",
    ) -> Row:
        """Predict a number up to rounding, or up to a stated tolerance."""
        return self._row(
            "exact", predicted, measured, tolerance, basis, samples, power=tolerance, unit=unit
        )

    def follows(
        self, law: Law, measured: float, *, basis: str, samples: int, per: float = 1.0
    ) -> Row:
        """Predict a random number by its law.

        Args:
            law: of the statistic.
            measured: the statistic.
            basis: where the law comes from.
            samples: as in `Row`.
            per: the row shows statistic / per (a mean in place of a sum).
        """
        low, high = law.limits()
        power, unit = _weaker(law.caught_below / per, law.caught_above / per)
        return self.within(
            law.mean / per,
            measured / per,
            limits=(low / per, high / per),
            probability=law.probability(measured),
            power=power,
            unit=unit,
            basis=f"{basis}, at {LEVEL:g}",
            samples=samples,
        )

    def within(
        self,
        predicted: float,
        measured: float,
        *,
        limits: tuple[float, float],
        probability: float,
        power: float,
        unit: str,
        basis: str,
        samples: int,
    ) -> Row:
        """Predict a random number by the limits of chance around it."""
        low, high = limits
        tolerance = high - predicted if measured >= predicted else predicted - low
        return self._row(
            "sampling", predicted, measured, tolerance, basis, samples,
            power=power, unit=unit, probability=probability,
        )  # fmt: skip

    def mean_count(self, counts: ArrayLike, *, pmf: NDArray[np.float64]) -> Iterator[Row]:
        """Predict the mean of independent whole numbers by the law P(0), P(1), ... of one.

        Args:
            counts: the draws, of any shape; no row where there are none.
            pmf: the law of a draw.
        """
        import numpy as np

        draws = np.asarray(counts)
        if draws.size:
            yield self.follows(
                law_of_sum(pmf, draws.size),
                int(draws.sum()),
                basis="quantiles of a sum of draws",
                samples=draws.size,
                per=draws.size,
            )

    def mean(
        self, values: ArrayLike, *, expected: float, variance: float, third: float
    ) -> Iterator[Row]:
        """Predict the mean of independent draws by the first three cumulants of their law.

        Args:
            values: the draws, of any shape.
            expected: their predicted mean.
            variance: predicted variance of one draw, averaged where draws differ; no row if 0.
            third: predicted third central moment of one draw, averaged as well.
        """
        import numpy as np

        draws = np.asarray(values, dtype=float)
        if draws.size and variance > 0:
            n = draws.size
            yield self.follows(
                law_of_cumulants(expected, variance / n, third / n**2),
                float(draws.mean()),
                basis="quantiles by mean, variance and skewness",
                samples=n,
            )

    def student(self, values: ArrayLike, *, expected: float) -> Iterator[Row]:
        """Predict the mean of independent draws by Student's t; no row for fewer than two draws."""
        import numpy as np
        from scipy import stats

        draws = np.asarray(values, dtype=float)
        if draws.size > 1 and (error := draws.std(ddof=1) / math.sqrt(draws.size)) > 0:
            yield self.follows(
                Law(stats.t(draws.size - 1, loc=expected, scale=error)),
                float(draws.mean()),
                basis="quantiles of Student's t",
                samples=draws.size,
            )

    def count(self, events: ArrayLike, *, probability: float) -> Row:
        """Predict how many of N independent events happen, each with `probability`."""
        import numpy as np
        from scipy import stats

        happened = np.asarray(events)
        n = happened.size
        law = Law(stats.binom(n, probability), 0, n, whole=True)
        low, high = law.limits()
        expected = n * probability
        above = n * stats.beta.ppf(POWER, high + 1, n - high) - expected if high < n else math.inf
        below = expected - n * stats.beta.ppf(1 - POWER, low, n - low + 1) if low > 0 else math.inf
        power, unit = _weaker(float(below), float(above))
        return self.within(
            expected,
            happened.sum(),
            limits=(low, high),
            probability=law.probability(float(happened.sum())),
            power=power,
            unit=unit,
            basis=f"binomial quantiles, at {LEVEL:g}",
            samples=n,
        )

    def at_most(self, events: ArrayLike, *, probability: float, why: str) -> Row:
        """Predict that of N independent events no more happen than with `probability` each.

        Args:
            events: of any shape, True where one happened.
            probability: upper bound on that of each event.
            why: where the bound comes from.
        """
        import numpy as np
        from scipy import stats

        happened = np.asarray(events)
        n, measured = happened.size, int(happened.sum())
        law = stats.binom(n, probability)
        high = float(law.isf(LEVEL))
        expected = n * probability
        above = n * stats.beta.ppf(POWER, high + 1, n - high) - expected if high < n else math.inf
        return self.within(
            expected,
            measured,
            limits=(0, high),
            probability=float(law.sf(measured - 1)),
            power=float(above),
            unit="of measured, upwards only",
            basis=f"at most: {why}; binomial quantile, at {LEVEL:g}",
            samples=n,
        )

    def law(self, counts: ArrayLike, *, pmf: NDArray[np.float64]) -> Iterator[Row]:
        """Predict the law of whole numbers by Pearson's chi-square; no row where draws are few.

        Neighbouring values are pooled until at least 5 draws are expected in each cell. With k
        cells of probabilities p_j and n draws the statistic has mean k - 1 and variance
        2 (k - 1) + (sum 1 / p_j - k^2 - 2 k + 2) / n (Cramér 1946, section 30.1).

        Args:
            counts: independent draws, of any shape.
            pmf: predicted P(0), P(1), ...
        """
        import numpy as np

        draws = np.asarray(counts).ravel()
        n = draws.size
        expected = pmf * n
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
            k = len(cells)
            yield self.chi_square(
                ((o - e) ** 2 / e).sum(),
                freedom=k - 1,
                variance=2 * (k - 1) + float((n / e).sum() - k**2 - 2 * k + 2) / n,
                samples=n,
                effect=1 / math.sqrt(n),
                unit="root mean square relative deviation of probabilities",
            )

    def chi_square(
        self,
        statistic: float,
        *,
        freedom: int,
        variance: float,
        samples: int,
        effect: float,
        unit: str,
    ) -> Row:
        """Predict a chi-square statistic, by a multiple of a chi-square law of this variance.

        Args:
            statistic: the statistic.
            freedom: its degrees of freedom, which is its mean.
            variance: its variance, which for few draws is not quite 2 x freedom.
            samples: as in `Row`.
            effect: the size of effect that adds 1 to the mean.
            unit: what the size of effect is.
        """
        from scipy import optimize, stats

        scale = variance / (2 * freedom)
        law = Law(stats.chi2(freedom / scale, scale=scale), 0)
        low, high = law.limits()
        if freedom < FEW_CELLS:  # counts that are as expected make 0, more often than the law says
            low = 0.0

        def missed(noncentrality: float) -> float:
            caught = stats.ncx2.sf(high / scale, freedom / scale, noncentrality / scale)
            return float(caught) - POWER

        noncentrality = optimize.brentq(missed, 1e-6, 100 * (high + 1))
        return self.within(
            freedom,
            statistic,
            limits=(low, high),
            probability=law.probability(statistic) if statistic > freedom or low else 1.0,
            power=effect * math.sqrt(noncentrality),
            unit=unit,
            basis=f"chi-square quantiles, {freedom} degrees of freedom, at {LEVEL:g}",
            samples=samples,
        )

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
        *,
        power: float = math.nan,
        unit: str = "",
        probability: float = math.nan,
    ) -> Row:
        if power == math.inf:
            basis = f"cannot fail at this size: {basis}"
        return Row(
            self.name, self.statement, self.tests, kind,
            float(predicted), float(measured), float(tolerance), basis, int(samples),
            self.meaning, float(power), unit, float(probability),
        )  # fmt: skip


def _weaker(below: float, above: float) -> tuple[float, str]:
    """Give the deviation that is noticed whichever way it goes, or the only way it can."""
    if below == math.inf and above < math.inf:
        return above, "of measured, upwards only"
    if above == math.inf and below < math.inf:
        return below, "of measured, downwards only"
    return max(below, above), "of measured"


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
