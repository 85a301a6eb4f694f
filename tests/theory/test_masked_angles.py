import itertools
import math

import pytest
import torch

from subspace_lab.linalg.angles import principal_angles
from subspace_lab.linalg.nulls import null_overlap, random_angle_moments
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.mask_law import Bernoulli
from subspace_lab.theory.masked_angles import (
    angles_from_gram,
    expected_right_angles,
    right_angles_pmf,
)

RANK, WIDTH = 4, 9


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(RANK, WIDTH, generator=generator, dtype=torch.float64)


def pairs_of_masks(rank=RANK):
    return itertools.product(all_masks(rank), repeat=2)


def test_angles_of_all_pairs_of_masks(deviation, rows):
    largest = 0.0
    for mask, next_mask in pairs_of_masks():
        found = angles_from_gram(rows @ rows.T, mask, next_mask)
        assert len(found.angles) == min(mask.sum(), next_mask.sum())
        assert found.shared == (mask & next_mask).sum() and not found.angles[: found.shared].any()
        if len(found.angles):
            direct = principal_angles(rows[mask].T, rows[next_mask].T)
            largest = max(largest, float((found.angles - direct).abs().max()))
    deviation("T2: angles from the Gram matrix, radians", angles_from_gram, largest, 1e-12)


def test_residual_angles_from_the_precision_matrix(deviation, rows):
    largest = 0.0
    for mask, next_mask in pairs_of_masks():
        first, second, union = mask & ~next_mask, next_mask & ~mask, mask | next_mask
        if not (first.any() and second.any()):
            continue
        precision = torch.zeros(RANK, RANK, dtype=torch.float64)
        gram = rows[union] @ rows[union].T
        precision[torch.outer(union, union)] = torch.linalg.inv(gram).flatten()
        roots = [
            torch.linalg.cholesky(torch.linalg.inv(precision[side][:, side]))
            for side in (first, second)
        ]
        cosines = torch.linalg.svdvals(roots[0].T @ precision[first][:, second] @ roots[1])
        found = angles_from_gram(rows @ rows.T, mask, next_mask).residual
        largest = max(largest, float((found.cos() - cosines).abs().max()))
    deviation("T2: residual cosines from the precision matrix", angles_from_gram, largest, 1e-12)


def test_orthogonal_residuals_are_at_right_angles(deviation, rows):
    # Rows that are orthogonal to each other, except to the shared row.
    Q = torch.linalg.qr(rows.T)[0].T
    rows = torch.stack([Q[0], Q[1] + 2 * Q[0], Q[2] - 3 * Q[0]])
    mask, next_mask = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    found = angles_from_gram(rows @ rows.T, mask, next_mask)
    error = abs(found.angles - torch.tensor([0, math.pi / 2], dtype=torch.float64)).max()
    deviation("T2: orthogonal residuals give 90 degrees", angles_from_gram, error, 1e-14)


@pytest.mark.parametrize("keep_prob", [0.2, 0.5, 0.9])
def test_expected_right_angles(deviation, keep_prob):
    masks = all_masks(RANK)
    weights = mask_probabilities(masks, keep_prob=keep_prob)
    sizes = masks.sum(1)
    right = torch.minimum(sizes[:, None], sizes) - (masks.double() @ masks.double().T)
    expected = weights @ right @ weights
    error = abs(expected - expected_right_angles(RANK, keep_prob=keep_prob))
    deviation("T2: expected number of right angles", expected_right_angles, error, 1e-14)
    pmf = right_angles_pmf(RANK, keep_prob=keep_prob)
    largest = 0.0
    for number, probability in enumerate(pmf):
        enumerated = weights @ (right == number).double() @ weights
        largest = max(largest, abs(enumerated - probability))
    assert len(pmf) == RANK // 2 + 1
    deviation("T2: law of the number of right angles", right_angles_pmf, largest, 1e-14)


@pytest.mark.parametrize(("rank", "width", "keep_prob"), [(4, 9, 0.5), (3, 6, 0.8)])
def test_null_overlap_by_enumeration(deviation, rank, width, keep_prob):
    masks = all_masks(rank)
    weights = mask_probabilities(masks, keep_prob=keep_prob)
    cosines = phi = nonempty = 0.0
    for (mask, weight), (other, other_weight) in itertools.product(
        zip(masks, weights, strict=True), repeat=2
    ):
        shared = int((mask & other).sum())
        a, b = int(mask.sum()) - shared, int(other.sum()) - shared
        mean = random_angle_moments(width, a, b, shared=shared).mean
        cosines += weight * other_weight * mean
        if min(mask.sum(), other.sum()):
            phi += weight * other_weight * mean / min(mask.sum(), other.sum())
            nonempty += weight * other_weight
    found = null_overlap(width, Bernoulli(keep_prob).kept_pmf(rank))
    error = abs(found.squared_cosines - cosines)
    deviation("T3: E sum cos² over masks of a random frame", null_overlap, error, 1e-13)
    error = abs(found.phi - phi / nonempty)
    deviation("T3: E of the normalized overlap over masks", null_overlap, error, 1e-13)


def test_random_frames_follow_the_null(deviation):
    generator, samples = torch.Generator().manual_seed(0), 4000
    frames = torch.randn(samples, WIDTH, 4, generator=generator, dtype=torch.float64)
    # Masks {0, 1, 2} and {0, 3}: one shared direction, then a = 2 and b = 1.
    angles = principal_angles(frames[..., [0, 1, 2]], frames[..., [0, 3]])
    sums = angles.cos().square().sum(-1)
    moments = random_angle_moments(WIDTH, 2, 1, shared=1)
    error = abs(sums.mean() - moments.mean) / (sums.std() / samples**0.5)
    deviation("T3: mean of sum cos², standard errors", random_angle_moments, error, 4)
    squares = (sums - moments.mean) ** 2
    error = abs(squares.mean() - moments.variance) / (squares.std() / samples**0.5)
    deviation("T3: variance of sum cos², standard errors", random_angle_moments, error, 4)


def test_dependent_rows_are_refused():
    mask = torch.tensor([True, True])
    with pytest.raises(torch.linalg.LinAlgError):
        angles_from_gram(torch.zeros(2, 2), mask, mask)
