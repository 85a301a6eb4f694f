"""A right run is accused no more often than the level says: every sampling row, by simulation.

Masks, first weights and gates are drawn from their laws, without training. The probabilities that
rows give must be uniform or larger: P(probability <= a) <= a, checked at a = 5, 1 and 0.1 %, as the
1 in 10,000 of the verdicts would need millions of draws. The test draws little, to be fast;

    python -m tests.analyses.test_levels DRAWS

prints the share of alarms for each row at these levels.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analyses.mask_theory import angles, drawn_masks, first_steps, masked_updates, observed_gates
from analyses.mask_theory.comparison import NotTestableError
from analyses.mask_theory.prediction import predictions_of
from analyses.mask_theory.record import Directions, Displacements, Group
from subspace_lab.linalg import triangular_factor
from subspace_lab.linalg.rank_core import Frame, RankCore
from subspace_lab.runs.observed_gates import Gates
from subspace_lab.theory.mask_law import Bernoulli, ExactK, MaskLaw

N, M_OUT = 48, 40


class Simulated(Group):
    """A group of modules whose record is drawn from the laws that theory is about."""

    starts_at_random = True

    @property
    def config(self):
        return {"batch_size": 2}

    def core(self, step):
        return self.first

    def gradient_norms(self, steps):
        return np.full(len(steps), np.nan)

    def learning_rates(self, steps):
        return None


class Record:
    """A run that says nothing of processes."""

    description = types.MappingProxyType({})
    gates_chosen = False
    modules = pd.DataFrame({"m": [M_OUT], "r": [1]})


def draw_masks(law: MaskLaw, rng, *shape: int, rank: int):
    return law.draw(rng.random((*shape, rank)))


def draw_cores(rng, *shape: int, rank: int) -> RankCore:
    """Draw cores of A as PEFT initializes it (uniform entries) and of some B."""
    A = torch.from_numpy(rng.uniform(-1, 1, (*shape, N, rank)))
    B = torch.from_numpy(rng.normal(size=(*shape, M_OUT, rank)))
    frames = [Frame(triangular_factor(X)) for X in (A, B)]
    return RankCore(*frames, torch.ones(shape, dtype=torch.float64))


def simulate(law: MaskLaw, rng, *, steps: int, modules: int, rank: int) -> Simulated:
    table = pd.DataFrame({"module": [f"m{i}" for i in range(modules)], "n": N, "m": M_OUT})
    group = Simulated(Record(), table.assign(r=rank))
    group.__dict__ |= {
        "law": law,
        "first": draw_cores(rng, modules, rank=rank),
        "core_steps": [0],
        "finite": {0: True},
        "starts_at_zero": True,
        "optimizer": None,
        "cores": (np.arange(steps), draw_cores(rng, steps, modules, rank=rank)),
        "masks": None,
        "gates": [],
        "displacements": None,
    }
    if law.granularity == "step":
        drawn = draw_masks(law, rng, steps, modules, rank=rank)
        group.__dict__ |= {"masks": drawn, "mask_steps": np.arange(1, steps + 1)}
    shapes = {"step": (steps, 1, 1), "sample": (steps, 4, 1), "token": (steps, 4, 4)}
    for name in table["module"]:
        seen = draw_masks(law, rng, *shapes[law.granularity], rank=rank)
        seen = torch.from_numpy(np.broadcast_to(seen, (steps, 4, 4, rank)) * law.factor)
        group.gates.append(Gates(name, torch.arange(1, steps + 1), seen, 1e-7))
    if law.granularity == "sample":
        stayed = ~draw_masks(law, rng, 2, modules, rank=rank).any(0)
        moved = Directions(*(np.broadcast_to(~stayed, (1, modules, rank)),) * 4)
        group.__dict__ |= {"displacements": Displacements(np.array([1]), moved, moved)}
    return group


SAMPLING = (
    *(p for p in predictions_of(drawn_masks, observed_gates) if p is not drawn_masks.recorded),
    *(first_steps.first_columns, first_steps.untouched, angles.right, angles.halves),
    *(angles.residual, angles.learned, angles.phi, masked_updates.norm),
    *(masked_updates.first_share, masked_updates.middle_share, masked_updates.last_share),
)


def sampling_rows(group: Simulated):
    for prediction in SAMPLING:
        with contextlib.suppress(NotTestableError):
            row = prediction(group)
            if row.kind == "sampling":
                yield prediction.name, row


def levels(law: MaskLaw, *, draws: int, seed: int = 0, **sizes: int) -> dict[str, list[float]]:
    """Give each row's probabilities over simulated right runs."""
    rng = np.random.default_rng(seed)
    found = defaultdict(list)
    for _ in range(draws):
        for name, row in sampling_rows(simulate(law, rng, **sizes)):
            found[name].append(row.probability)
            rejected = row.agrees is False
            assert not rejected or row.probability <= 1.0001e-4
    return found


SETTINGS = {
    "one module, two steps": (Bernoulli(0.5), {"steps": 2, "modules": 1, "rank": 4}),
    "rank 1": (Bernoulli(0.3), {"steps": 5, "modules": 2, "rank": 1}),
    "step": (Bernoulli(0.7), {"steps": 18, "modules": 2, "rank": 8}),
    "few kept": (Bernoulli(0.1), {"steps": 50, "modules": 1, "rank": 4}),
    "exact-k": (ExactK(0.5), {"steps": 12, "modules": 3, "rank": 4}),
    "token": (Bernoulli(0.5, "token"), {"steps": 3, "modules": 2, "rank": 4}),
    "sample": (Bernoulli(0.6, "sample"), {"steps": 3, "modules": 2, "rank": 4}),
}
DRAWS = 25
ALARMS = (0.05, 0.01, 0.001)


@pytest.mark.parametrize("name", SETTINGS)
def test_right_runs_are_accused_at_the_nominal_level(name):
    law, sizes = SETTINGS[name]
    found = levels(law, draws=DRAWS, **sizes)
    assert found
    for prediction, probabilities in found.items():
        for level in ALARMS:
            alarms = sum(p <= level for p in probabilities)
            assert alarms <= stats.binom.isf(1e-5, DRAWS, level), (prediction, level, alarms)


def test_many_masks_of_few_frames_are_few_draws():
    """All overlaps of one random frame deviate together, whichever masks are laid over it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        group = simulate(Bernoulli(0.7), rng, steps=60, modules=3, rank=8)
        found.append(angles.phi(group).probability)
    assert len(found) == 60
    assert sum(p <= 0.01 for p in found) <= stats.binom.isf(1e-5, 60, 0.01)


def main() -> None:
    """Print the share of alarms of every row in many simulated right runs."""
    draws = int(sys.argv[1])
    for name, (law, sizes) in SETTINGS.items():
        print(f"{name}, {law}, {sizes}: share of {draws} right runs with an alarm", flush=True)
        for prediction, probabilities in levels(law, draws=draws, **sizes).items():
            shares = (np.sum(np.array(probabilities) <= level) / draws for level in ALARMS)
            text = "  ".join(
                f"{share:.4f} at {level:g}" for share, level in zip(shares, ALARMS, strict=True)
            )
            print(f"  {prediction:38s} {text}", flush=True)


if __name__ == "__main__":
    main()
