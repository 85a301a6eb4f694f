import numpy as np
import pytest

from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.mask_frequency import frequency_statistic
from subspace_lab.theory.mask_law import Bernoulli, ExactK

RANK, STEPS = 3, 3


@pytest.mark.parametrize("law", [Bernoulli(1 / 3), ExactK(1 / 3)], ids=lambda law: law.sampling)
def test_mean_and_variance_by_enumeration(law, deviation):
    masks = all_masks(RANK)
    weights = mask_probabilities(masks, keep_prob=1 / 3).numpy()
    masks = masks.numpy()
    if law.sampling == "exact-k":
        weights = (masks.sum(1) == 1) / 3
    places = np.indices((len(masks),) * STEPS).reshape(STEPS, -1).T
    probabilities = weights[places].prod(1)
    found = [frequency_statistic(masks[chosen][:, None], law) for chosen in places]
    values = np.array([statistic.value for statistic in found])
    mean = probabilities @ values
    variance = probabilities @ (values - mean) ** 2
    name = f"T1: chi-square of keep frequencies, {law.sampling}"
    deviation(f"{name}, mean", frequency_statistic, abs(mean - found[0].freedom), 1e-13)
    error = abs(variance - found[0].variance)
    deviation(f"{name}, variance", frequency_statistic, error, 1e-12)


def test_modules_add_up():
    masks = np.random.default_rng(0).random((5, 2, 4)) < 0.5
    law = Bernoulli(0.5)
    both = frequency_statistic(masks, law)
    parts = [frequency_statistic(masks[:, [module]], law) for module in (0, 1)]
    assert both.value == pytest.approx(sum(part.value for part in parts))
    assert both.variance == pytest.approx(sum(part.variance for part in parts))
    assert both.freedom == 8
