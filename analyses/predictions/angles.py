"""T2 and T3: principal angles between masked row spaces of one frame, and of a random frame.

Two masks of one frame A share |I| directions exactly, at angle zero; the rest is decided by the
Gram matrix A A^T, and at a random start by chance alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from analyses.predictions.group import Group

MOST_PAIRS = 200  # of masks, whose angles are taken twice
FLOAT64 = 2.0**-52

FROM_GRAM = Prediction(
    "angles from the Gram matrix", "T2", "angles of masked row spaces are not those of A A^T"
)
ZEROS = Prediction(
    "exact zero angles", "T2", "zero angles are not as many as the shared directions"
)
RIGHT = Prediction(
    "right angles, coordinate picture", "T2", "masks do not overlap as independent draws do"
)
HALVES = Prediction(
    "overlap of A's halves at the start", "T3", "the rows of A did not start as independent draws"
)
RESIDUAL = Prediction(
    "residual cos² at the start", "T3", "the rows of A did not start as independent draws"
)
PHI = Prediction(
    "overlap phi of masks at the start", "T3", "masked row spaces do not overlap as by chance"
)
LEARNED = Prediction("residual cos² at the end", "T3", "the rows of A aligned in training")


def from_gram(group: Group) -> Iterator[Row]:
    """Angles of successive masks from the Gram matrix equal those from the frame."""
    import torch

    from subspace_lab import linalg
    from subspace_lab.theory.masked_angles import angles_from_gram

    if group.masks is None:
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
    """In coordinates, min(|M|, |M'|) - |I| angles are right: sum_j P(K >= j)^2 - r q^2."""
    import numpy as np

    from analyses.predictions.masks import disjoint_pairs
    from subspace_lab.theory.masked_angles import expected_right_angles

    if group.masks is None or group.law is None or group.law.sampling != "bernoulli":
        return
    first, second = disjoint_pairs(group.masks, lag=1)
    if first.size == 0:
        return
    smaller = np.minimum(first.sum(-1), second.sum(-1))
    found = smaller - (first & second).sum(-1)
    expected = expected_right_angles(group.rank, keep_prob=group.law.keep_prob)
    yield RIGHT.empirical_mean(found, expected=expected)


def halves_at_start(group: Group) -> Iterator[Row]:
    """The first and last r/2 rows of a random A are independent subspaces of R^n."""
    import torch

    from subspace_lab import linalg

    half = group.rank // 2
    if not group.starts_at_random or not half:
        return
    R = group.core(0).row.R
    first = (torch.arange(group.rank) < half).expand(len(R), -1)
    angles = linalg.masked_angles(R, first, ~first).angles
    found = angles.cos().square().nansum(-1)
    yield HALVES.mean(found.numpy(), **_null(group, [(half, group.rank - half, 0)] * len(R)))


def residual_at_start(group: Group) -> Iterator[Row]:
    """At the random start sum cos² past the shared directions is ab / (n - |I|), on average."""
    import torch

    if group.masks is None or not group.starts_at_random or len(group.masks) < 2:
        return
    masks = torch.from_numpy(group.masks)
    first, second = masks[0], masks[1]
    found, sizes = _residual(group.core(0).row.R, first, second)
    yield RESIDUAL.mean(found.numpy(), **_null(group, sizes))
    last = group.core_steps[-1]
    if last > 0:
        found, sizes = _residual(group.core(last).row.R, first, second)
        null = _null(group, sizes)
        yield LEARNED.indicative(
            null["expected"],
            float(found.mean()),
            scale=4 * (null["variance"] / len(found)) ** 0.5,
            why="training aligns rows: the random null is where it began",
            samples=len(found),
        )


def phi_at_start(group: Group) -> Iterator[Row]:
    """Normalised overlap phi of two masks of the random A, averaged over masks: about q."""
    import torch

    from analyses.predictions.masks import disjoint_pairs
    from subspace_lab import linalg

    if group.masks is None or group.law is None or group.law.sampling != "bernoulli":
        return
    first, second = disjoint_pairs(group.masks, lag=1)
    if not group.starts_at_random or first.size == 0:
        return
    R = group.core(0).row.R
    angles = linalg.masked_angles(R, torch.from_numpy(first), torch.from_numpy(second)).angles
    smaller = (~angles.isnan()).sum(-1)
    phi = angles.cos().square().nansum(-1) / smaller
    expected = [
        linalg.null_overlap(n, group.rank, keep_prob=group.law.keep_prob).phi
        for n in group.modules["n"]
    ]
    centred = phi - torch.tensor(expected, dtype=phi.dtype)
    mean = sum(expected) / len(expected)
    yield PHI.empirical_mean((centred + mean)[smaller > 0].numpy(), expected=mean)


PREDICTIONS = (from_gram, right_angles, halves_at_start, residual_at_start, phi_at_start)


def _successive(group: Group) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Places of core steps t whose masks t and t + 1 are known, and these masks (T, M, r)."""
    import numpy as np
    import torch

    steps, known = group.cores[0], group.mask_steps
    places = np.flatnonzero(np.isin(steps, known) & np.isin(steps + 1, known))
    first, second = (group.masks_of(steps[places] + shift) for shift in (0, 1))
    return places, torch.from_numpy(first), torch.from_numpy(second)


def _residual(
    R: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Sum of cos² past the shared directions (M), and |M less I|, |M' less I|, |I| of each."""
    from subspace_lab import linalg

    found = linalg.masked_angles(R, first, second)
    total = found.angles.cos().square().nansum(-1) - found.shared
    apart = zip(found.kept_x - found.shared, found.kept_y - found.shared, found.shared, strict=True)
    return total, [(int(a), int(b), int(shared)) for a, b, shared in apart]


def _null(group: Group, sizes: list[tuple[int, int, int]]) -> dict[str, float]:
    """Average over modules of the mean and variance of the residual sum cos² of random frames."""
    from subspace_lab import linalg

    laws = [
        linalg.random_angle_moments(n, a, b, shared=shared)
        for n, (a, b, shared) in zip(group.modules["n"], sizes, strict=True)
    ]
    means = [law.mean - shared for law, (_, _, shared) in zip(laws, sizes, strict=True)]
    return {
        "expected": sum(means) / len(laws),
        "variance": sum(law.variance for law in laws) / len(laws),
    }


def _present(angles: Tensor) -> Tensor:
    return angles[~angles.isnan()]
