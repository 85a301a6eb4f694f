from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from subspace_lab.stats.paired import paired_difference, sign_flip_test


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flip_p_value_equals_enumeration(n):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    signs = np.array(list(itertools.product([1, -1], repeat=n)))
    sums = signs @ differences
    truth = (np.abs(sums) >= abs(differences.sum()) - 1e-12).mean()
    found = sign_flip_test(differences)
    assert found.exact
    assert found.p_value == pytest.approx(truth, abs=1e-12)


def test_an_unknown_difference_has_no_p_value():
    assert math.isnan(sign_flip_test([1.0, math.nan, 2.0]).p_value)


def test_many_pairs_are_sampled_and_agree_with_the_normal_limit():
    differences = np.random.default_rng(0).normal(0.15, 1, 200)
    found = sign_flip_test(differences)
    z = differences.sum() / math.sqrt((differences**2).sum())
    assert not found.exact
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(1)
    p = [sign_flip_test(rng.standard_t(3, 6)).p_value for _ in range(300)]
    assert np.mean(np.array(p) <= 0.0625) == pytest.approx(0.0625, abs=4 * 0.014)


def test_pairing_removes_what_seeds_have_in_common():
    rng = np.random.default_rng(2)
    common = rng.normal(0, 10, 8)
    first = dict(enumerate(common + rng.normal(0, 0.1, 8)))
    second = dict(enumerate(common + 1 + rng.normal(0, 0.1, 8)))
    found = paired_difference(first, second)
    assert found.difference.low > 0.8 and found.difference.high < 1.2
    assert found.test.p_value == 2 / 2**8
    truth = stats.ttest_rel(list(second.values()), list(first.values())).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(truth))


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 5.0, 2: 3.0}, {2: 4.0, 0: 3.0, 7: 9.0})
    assert found.pairs == (0, 2)
    assert found.difference.estimate == 1.5
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})
