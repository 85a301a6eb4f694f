"""What each of the paper's claims predicts of the experiments' differences.

Claims that are not listed say something about masks or about single updates, which runs test by
themselves (`analyses.claims`), or something that no experiment measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from experiments.comparisons import PRIMARY
from experiments.measured import EQUAL_NORM, GAIN_OVER_SINGLES, SLOPE_OVER_RANK

CONFIRMATION = ("noise",)
"""X7's like of regime A, in the size that was run."""


@dataclass(frozen=True)
class Outcome:
    """What is compared.

    Attributes:
        name: in words; test losses are those at the validated temperature.
        unit: of `scale` times the tables' numbers.
        scale: the factor.
    """

    name: str
    unit: str
    scale: float = 1.0


OUTCOMES = {
    PRIMARY: Outcome("test loss", "nats per token"),
    "calibrated_loss": Outcome("test loss", "nats per token"),
    "test_exact_match": Outcome("exact match", "points", 100.0),
    GAIN_OVER_SINGLES: Outcome("gain of the full update over single masks", "nats per token"),
    SLOPE_OVER_RANK: Outcome("slope of the test loss", "nats per token per doubling of the rank"),
    "single_entropy": Outcome("entropy effective rank of dW", "directions"),
    "single_stable": Outcome("stable rank of dW", "directions"),
    EQUAL_NORM: Outcome("entropy effective rank of dW at equal norm", "directions"),
}


@dataclass(frozen=True)
class Predicted:
    """What a claim predicts of a difference.

    Attributes:
        sign: `below` or `above` zero, or `none`: no difference that matters.
        experiment: such as x1.
        comparison: such as "step - LoRA".
        outcome: what is compared.
        rates: each at its `own` learning rate, or both at LoRA's (`equal`).
        regimes: where.
    """

    sign: Literal["below", "above", "none"]
    experiment: str
    comparison: str
    outcome: str = PRIMARY
    rates: Literal["own", "equal"] = "own"
    regimes: tuple[str, ...] = ("A", "B")


RESTS_ON: Mapping[str, tuple[Predicted, ...]] = {
    "one method": (Predicted("none", "x2", "token - step"),),
    "an ensemble": (
        Predicted("none", "x4", "step, geometric - full update", "calibrated_loss"),
        Predicted("none", "x4", "step, arithmetic - full update", "calibrated_loss"),
        Predicted("above", "x4", "step - LoRA", GAIN_OVER_SINGLES),
    ),
    "by subspaces": (
        Predicted("none", "x2", "token - LoRA"),
        Predicted("above", "x2", "token - step"),
        Predicted("above", "x1", "masks-32 - step"),
        Predicted("below", "x3", "dwell-10 - step"),
    ),
    "more directions": (
        Predicted("above", "x6", "step - LoRA", "single_entropy", "equal", ("A", "B", "C")),
        Predicted("above", "x6", "step - LoRA", EQUAL_NORM, "equal", ("A", "B", "C")),
        Predicted("above", "x6", "step - LoRA", "single_stable", "equal", ("A", "B", "C")),
        Predicted("above", "x7-short", "step - LoRA", "single_entropy", "own", CONFIRMATION),
    ),
    "less rank is better": (
        Predicted("below", "x1", "step - LoRA"),
        Predicted("below", "x5", "token - LoRA", regimes=("C",)),
        Predicted("below", "x3", "LoRA-r8 - LoRA"),
    ),
    "a mild pruning": (
        Predicted("below", "x5", "token-0.8 - token", regimes=("A", "B", "C")),
        Predicted("above", "x5", "token-0.25 - token", regimes=("A", "B", "C")),
    ),
    "less gain at small rank": (
        Predicted("below", "x5", "token - LoRA", SLOPE_OVER_RANK, regimes=("A", "B", "C")),
    ),
    "better on every task": (
        Predicted("below", "x1", "step - LoRA"),
        Predicted("below", "x5", "token - LoRA", regimes=("C",)),
        Predicted("below", "x7-short", "step - LoRA", regimes=CONFIRMATION),
        Predicted("below", "x7-short", "token - LoRA", regimes=CONFIRMATION),
    ),
    "significantly better": (
        Predicted("below", "x1", "step - LoRA"),
        Predicted("above", "x1", "step - LoRA", "test_exact_match"),
        Predicted("below", "x2", "token - LoRA"),
        Predicted("above", "x2", "token - LoRA", "test_exact_match"),
        Predicted("below", "x5", "token - LoRA", regimes=("C",)),
        Predicted("below", "finer", "step - LoRA"),
        Predicted("below", "finer", "token - LoRA"),
    ),
    "at LoRA's settings": (
        Predicted("below", "x1", "step - LoRA", rates="equal"),
        Predicted("below", "x2", "token - LoRA", rates="equal"),
        Predicted("below", "x7-short", "step - LoRA", rates="equal", regimes=CONFIRMATION),
        Predicted("below", "x7-short", "token - LoRA", rates="equal", regimes=CONFIRMATION),
    ),
}
"""By the names of `analyses.claims.paper.CLAIMS`.

A search over subspaces gains nothing where tokens have masks of their own, is over when many masks
share a step, and takes time in each subspace: so hypothesis S is registered.
"""
STRICT = ("better on every task", "by subspaces")
"""Claims that one contradiction refutes: about every task, and about the reason of the gain."""
