"""Differences between masked and LoRA runs of the same configuration, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from subspace_lab.stats.paired import PairedDifference, paired_difference

LEVEL = 0.05  # probability that any of a claim's comparisons is called a difference by chance


@dataclass(frozen=True)
class Measurement:
    """A number about a run.

    Attributes:
        value: the number.
        conditions: how it was measured; only numbers measured alike are compared.
    """

    value: float
    conditions: str


@dataclass(frozen=True)
class Difference:
    """Masked runs minus LoRA runs of the same configuration, seed by seed.

    Attributes:
        label: the masked configuration.
        quantity: what is compared.
        by_seed: difference by seed.
        conditions: how both were measured.
        config: a masked run's configuration.
    """

    label: str
    quantity: str
    by_seed: Mapping[Hashable, float]
    conditions: str
    config: Mapping[str, Any]

    @cached_property
    def difference(self) -> PairedDifference:
        """The mean over seeds, with interval and test."""
        return paired_difference(dict.fromkeys(self.by_seed, 0.0), self.by_seed)

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(self.difference.difference.estimate)

    @property
    def p_value(self) -> float:
        """Of the sign-flip test, not corrected for other comparisons."""
        return self.difference.test.p_value

    @property
    def seeds(self) -> int:
        """How many seeds were paired."""
        return len(self.by_seed)

    def __str__(self) -> str:
        """Give the difference with its evidence."""
        interval = self.difference.difference
        text = f"{self.label}: {self.estimate:+.3f} {self.quantity} against LoRA ("
        if self.seeds > 1:
            text += f"95 % interval {interval.low:+.3f} to {interval.high:+.3f}, "
            text += f"p = {self.p_value:.2g}, "
        return text + f"{self.seeds} paired seed{'s' * (self.seeds > 1)}, {self.conditions})"


def seeds_needed(comparisons: int) -> int:
    """Smallest number of seeds at which Holm's correction lets a sign-flip test reach the level.

    Of n seeds the smallest p-value is 2 / 2^n, and it is multiplied by the number of comparisons.

    >>> [seeds_needed(k) for k in (1, 2, 4, 8)]
    [6, 7, 8, 9]
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) / LEVEL))


def with_enough_seeds(differences: Sequence[Difference]) -> list[Difference]:
    """Keep those that a test of all of them together could call a difference."""
    wanted = seeds_needed(len(differences))
    return [difference for difference in differences if difference.seeds >= wanted]
