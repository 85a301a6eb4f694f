"""T2 and T3: principal angles between masked row spaces of one frame, and of a random frame.

Two masks of one frame A share |I| directions exactly, at angle zero; the rest is decided by the
Gram matrix A A^T, and at a random start by chance alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from analyses.predictions.laws import Law
from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from analyses.predictions.group import Group

MOST_PAIRS = 200  # of masks, whose angles are taken twice
FLOAT64 = 2.0**-52

FROM_GRAM = Prediction(
    "angles from the Gram matrix",
    "T2",
    "identity",
    "angles of masked row spaces are not those of A A^T",
)
ZEROS = Prediction(
    "exact zero angles", "T2", "identity", "zero angles are not as many as the shared directions"
)
RIGHT = Prediction(
    "right angles, coordinate picture",
    "T2",
    "masks drawn",
    "masks do not overlap as independent draws do",
)
HALVES = Prediction(
    "overlap of A's halves at the start",
    "T3",
    "initialization",
    "the rows of A did not start as independent draws",
)
RESIDUAL = Prediction(
    "residual cos² at the start",
    "T3",
    "initialization",
    "the rows of A did not start as independent draws",
)
PHI = Prediction(
    "overlap phi of masks at the start",
    "T3",
    "initialization",
    "masked row spaces do not overlap as by chance",
)
LEARNED = Prediction(
    "residual cos² at the end", "T3", "training", "the rows of A aligned in training"
)


def from_gram(group: Group) -> Iterator[Row]:
    """Angles of successive masks from the Gram matrix equal those from the frame."""
    import torch

    from subspace_lab import linalg
    from subspace_lab.theory.masked_angles import angles_from_gram

    if group.masks is None or not _independent(group):
        return
    places, first, second = _successive(group)
    cores = group.cores[1][torch.from_numpy(places)]
    if not len(places):
        return
    R, gram = cores.row.R.flatten(0, 1), cores.row.gram.flatten(0, 1)
    first, second = first.flatten(0, 1), second.flatten(0, 1)
    found = linalg.masked_angles(R, first, second)
    yield ZEROS.never((found.angles == 0).sum(-1) != found.shared)
    usable = (first.any(-1) & second.any(-1)).nonzero().flatten()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(MOST_PAIRS, len(usable))).long()]
    if not len(chosen):
        return
    differences = [
        angles_from_gram(gram[i], first[i], second[i]).angles - _present(found.angles[i])
        for i in chosen.tolist()
    ]
    condition = float(torch.linalg.cond(R[chosen]).max())
    yield FROM_GRAM.equal(
        0,
        float(torch.cat(differences).abs().max()),
        tolerance=condition * FLOAT64**0.5,
        basis="largest difference in radians; rounding of a Gram matrix, sqrt(eps) cond(A)",
        samples=len(chosen),
    )


def right_angles(group: Group) -> Iterator[Row]:
    """In coordinates, min(|M|, |M'|) - |I| angles are right."""
    import numpy as np

    from analyses.predictions.masks import disjoint_pairs
    from subspace_lab.theory.masked_angles import right_angles_pmf

    if group.masks is None or group.law is None or group.law.sampling != "bernoulli":
        return
    first, second = disjoint_pairs(group.masks, lag=1)
    found = np.minimum(first.sum(-1), second.sum(-1)) - (first & second).sum(-1)
    pmf = right_angles_pmf(group.rank, keep_prob=group.law.keep_prob)
    if pmf[0] < 1:
        yield from RIGHT.mean_count(found, pmf=pmf)


def halves_at_start(group: Group) -> Iterator[Row]:
    """The first and last r/2 rows of a random A are independent subspaces of R^n."""
    import torch

    half = group.rank // 2
    if not group.starts_at_random or not half or not _independent(group):
        return
    R = group.core(0).row.R
    first = (torch.arange(group.rank) < half).expand(len(R), -1)
    yield from _null(HALVES, *_residual(group, R, first, ~first))


def residual_at_start(group: Group) -> Iterator[Row]:
    """At the random start sum cos² past the shared directions is ab / (n - |I|), on average."""
    import torch

    if group.masks is None or not group.starts_at_random or len(group.masks) < 2:
        return
    if not _independent(group):
        return
    masks = torch.from_numpy(group.masks)
    yield from _null(RESIDUAL, *_residual(group, group.core(0).row.R, masks[0], masks[1]))
    last = group.core_steps[-1]
    if last > 0:
        found, nulls = _residual(group, group.core(last).row.R, masks[0], masks[1])
        yield LEARNED.indicative(
            sum(null.mean for null in nulls) / len(nulls),
            float(found.mean()),
            scale=4 * sum(null.variance for null in nulls) ** 0.5 / len(nulls),
            why="training aligns rows: the random null is where it began",
            samples=len(found),
        )


def phi_at_start(group: Group) -> Iterator[Row]:
    """Overlap phi of two masks of the random A, given the masks: (|I| + ab / (n - |I|)) / min.

    All pairs of masks of a module see the same random frame, so that each module counts once, with
    the average over its pairs.
    """
    import torch

    from analyses.predictions.masks import disjoint_pairs
    from subspace_lab import linalg

    if group.masks is None or not group.starts_at_random or not _independent(group):
        return
    first, second = (torch.from_numpy(side) for side in disjoint_pairs(group.masks, lag=1))
    if not len(first):
        return
    R = group.core(0).row.R
    found = linalg.masked_angles(R, first, second)
    a, b = found.kept_x - found.shared, found.kept_y - found.shared
    n = torch.tensor(group.modules["n"].tolist())
    null = found.shared + a * b / (n - found.shared).clamp(min=1)
    smaller = torch.minimum(found.kept_x, found.kept_y).clamp(min=1)
    expected = (null / smaller).mean(0)
    phi = (found.angles.cos().square().nansum(-1) / smaller).mean(0)
    mean = float(expected.mean())
    yield from PHI.student((phi - expected + mean).numpy(), expected=mean)


PREDICTIONS = (from_gram, right_angles, halves_at_start, residual_at_start, phi_at_start)


def _successive(group: Group) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Places of core steps t whose masks t and t + 1 are known, and these masks (T, M, r)."""
    import numpy as np
    import torch

    steps, known = group.cores[0], group.mask_steps
    places = np.flatnonzero(np.isin(steps, known) & np.isin(steps + 1, known))
    first, second = (group.masks_of(steps[places] + shift) for shift in (0, 1))
    return places, torch.from_numpy(first), torch.from_numpy(second)


def _independent(group: Group) -> bool:
    """Whether r rows can be independent in R^n, for all modules: theory is about those."""
    return bool((group.modules["n"] >= group.rank).all())


class _Null(NamedTuple):
    """Sum of cos² past the shared directions for a random frame: moments and number of angles."""

    mean: float
    variance: float
    angles: int


def _residual(group: Group, R: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, list[_Null]]:
    """Sum of cos² past the shared directions (M), and what it is for random frames."""
    from subspace_lab import linalg

    found = linalg.masked_angles(R, first, second)
    total = found.angles.cos().square().nansum(-1) - found.shared
    nulls = []
    sizes = (found.shared.tolist(), found.kept_x.tolist(), found.kept_y.tolist())
    for n, shared, kept, next_kept in zip(group.modules["n"], *sizes, strict=True):
        a, b = kept - shared, next_kept - shared
        law = linalg.random_angle_moments(n, a, b, shared=shared)
        nulls.append(_Null(law.mean - shared, law.variance, min(a, b)))
    return total, nulls


def _null(prediction: Prediction, found: Tensor, nulls: list[_Null]) -> Iterator[Row]:
    """Hold the mean over modules of sum cos² against that of random frames.

    The sum over modules is between 0 and the number of angles. Its law is taken to be the beta law
    on that interval with the same mean and variance, which it is for one angle of one module.
    """
    from scipy import stats

    modules = len(nulls)
    mean, variance, angles = (
        sum(getattr(null, name) for null in nulls) for name in ("mean", "variance", "angles")
    )
    if variance > 0:
        share = mean / angles
        weight = share * (1 - share) * angles**2 / variance - 1
        beta = stats.beta(share * weight, (1 - share) * weight, scale=angles)
        yield prediction.follows(
            Law(beta, 0, angles),
            float(found.sum()),
            basis="quantiles of a beta law of the same mean and variance",
            samples=modules,
            per=modules,
        )


def _present(angles: Tensor) -> Tensor:
    return angles[~angles.isnan()]
