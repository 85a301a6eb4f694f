"""Which rank directions are kept: along three orders of them, and all but one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Gauge = Literal["trained", "singular"]
"""The factorization of B A whose directions are kept."""

ENDS = "ends"
LEFT_OUT = "left_out"


class Probe(NamedTuple):
    """One choice of the directions to keep.

    Attributes:
        curve: svd, prefix, random, left_out, or ends, which all curves share.
        kept: directions kept of a module of the largest rank.
        draw: which random order; else -1.
        module: whose direction is left out; else empty.
        direction: which is left out; else -1.
    """

    curve: str
    kept: int
    draw: int = -1
    module: str = ""
    direction: int = -1

    @property
    def gauge(self) -> Gauge:
        """Whose directions these are."""
        return "singular" if self.curve == "svd" else "trained"

    def gates(self, ranks: Mapping[str, int], *, seed: int) -> dict[str, Tensor]:
        """Give the gates (r,) of each module, 1 = kept.

        A module of rank r_m below the largest rank r keeps the same share, round(kept r_m / r).
        """
        gates = {}
        for place, (name, rank) in enumerate(ranks.items()):
            order = np.arange(rank)
            if self.curve == LEFT_OUT:
                kept = (order != self.direction) | (name != self.module)
            else:
                if self.draw >= 0:
                    order = np.random.default_rng((seed, self.draw, place)).permutation(rank)
                kept = order < round(self.kept * rank / max(ranks.values()))
            gates[name] = torch.from_numpy(kept).float()
        return gates


class Curve(NamedTuple):
    """One order of the directions, and the probes along it, from none kept to all."""

    name: str
    draw: int
    probes: list[Probe]


def curves(ranks: Mapping[str, int], *, points: int, draws: int) -> list[Curve]:
    """Give the curves: svd, prefix, and random orders."""
    rank = max(ranks.values())
    _, *inner, _ = kept_ranks(rank, points=points)
    orders = [("svd", -1), ("prefix", -1), *(("random", draw) for draw in range(draws))]
    return [
        Curve(
            name,
            draw,
            [Probe(ENDS, 0), *(Probe(name, kept, draw) for kept in inner), Probe(ENDS, rank)],
        )
        for name, draw in orders
    ]


def kept_ranks(rank: int, *, points: int) -> list[int]:
    """Give at most `points` kept ranks from 0 to r, evenly spread.

    >>> kept_ranks(8, points=5), kept_ranks(2, points=5)
    ([0, 2, 4, 6, 8], [0, 1, 2])
    """
    return [int(kept) for kept in np.unique(np.linspace(0, rank, points).round())]


def all_but_one(ranks: Mapping[str, int], *, modules: int) -> list[Probe]:
    """Give the probes that leave out one direction, of modules evenly spread over the model."""
    rank = max(ranks.values())
    return [
        Probe(LEFT_OUT, rank, module=name, direction=direction)
        for name in evenly_spread(list(ranks), modules)
        for direction in range(ranks[name])
    ]


def evenly_spread(names: Sequence[str], most: int) -> list[str]:
    """Choose at most `most` names at even distances.

    >>> evenly_spread(list("abcdef"), 3), evenly_spread(list("ab"), 8), evenly_spread(["a"], 0)
    (['a', 'c', 'f'], ['a', 'b'], [])
    """
    places = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[place] for place in places]
