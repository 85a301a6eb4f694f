"""Predictions: what theory says of a record, what testing it takes, and what a failure means.

A prediction's function compares theory and measurement; it may assume what the prediction needs,
which is checked before. What cannot be tested becomes a row that says why.

A row tests one of five things. Only rows about `training` say whether the run was trained as it
claims; `masks drawn` test the random generator behind the record of masks, `initialization` the
weights at step 0, `trained model` what the final weights do, and an `identity` holds for any
weights and masks, so that it tests the code that computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

from analyses.mask_theory.comparison import Comparison, NotTestableError

Tests = Literal["training", "masks drawn", "initialization", "trained model", "identity"]
Value = TypeVar("Value")
Compare = Callable[[Any], Comparison | None]


class Need:
    """Something that testing a prediction takes.

    Args:
        is_met: of what the prediction is about; true or not empty where it is there.
        otherwise: why a record without it cannot test the prediction.
        given: needs that come before, on which `is_met` may rely.
    """

    def __init__(self, is_met: Callable[[Any], Any], otherwise: str, *given: Need) -> None:
        self.is_met = is_met
        self.otherwise = otherwise
        self.given = given

    def check(self, subject: Any) -> None:
        """Raise NotTestableError where it is not met."""
        for need in self.given:
            need.check(subject)
        if not self.is_met(subject):
            raise NotTestableError(self.otherwise)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction.

    Attributes:
        theorem: its number in docs/theory.md; empty: none.
        name: short, unique.
        if_it_fails: what a disagreement would mean.
        needs: what testing it takes; later ones may rely on earlier ones.
        tests: what a disagreement would be about.
        compare: makes the comparison; None: there is nothing to say.
    """

    theorem: str
    name: str
    if_it_fails: str
    needs: tuple[Need, ...]
    tests: Tests
    compare: Compare

    def __call__(self, subject: Any) -> Comparison | None:
        """Compare theory with a subject's record.

        Raises:
            NotTestableError: if the record does not allow it.
        """
        for need in self.needs:
            need.check(subject)
        return self.compare(subject)

    def row(self, subject: Any) -> dict[str, Any] | None:
        """Give what the table's row about a subject says, without its place; None: no row."""
        row: dict[str, Any] = {"prediction": self.name, "statement": self.theorem}
        row |= {"tests": self.tests, "meaning": self.if_it_fails}
        try:
            comparison = self(subject)
        except NotTestableError as reason:
            return row | {"kind": "not testable", "basis": str(reason), "samples": 0, "unit": ""}
        if comparison is None:
            return None
        return row | asdict(comparison) | {"agrees": comparison.agrees}


def prediction(
    theorem: str,
    name: str,
    if_it_fails: str,
    *needs: Need,
    tests: Tests,
    always: tuple[Need, ...] = (),
) -> Callable[[Compare], Prediction]:
    """Make a `Prediction` of the function that compares.

    It needs `always`, which it shares with related predictions, before its own `needs`.
    """
    return lambda compare: Prediction(theorem, name, if_it_fails, always + needs, tests, compare)


def predictions_of(*modules: ModuleType) -> Iterator[Prediction]:
    """List the predictions that modules declare, in order."""
    for module in modules:
        yield from (value for value in vars(module).values() if isinstance(value, Prediction))


def known(value: Value | None) -> Value:
    """Give a value that a need of the prediction guarantees."""
    assert value is not None
    return value
