"""Each law against the enumeration of all masks and of all pairs of masks, or quadrature."""

from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from subspace_lab.errors import UserError
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.gauge import haar_energy
from subspace_lab.theory.mask_law import LAWS, Antithetic, Bernoulli, ExactK, Haar, mask_law

RANK = 6
MASKS = all_masks(RANK).numpy()


def of_masks(weight):
    """The probabilities of all masks, from a weight of each."""
    weights = np.array([float(weight(mask)) for mask in MASKS])
    return weights / weights.sum()


def coin_flips(q):
    return mask_probabilities(all_masks(RANK), keep_prob=q).numpy()


def prefix(weight):
    sizes = {tuple(np.arange(RANK) < b): weight(b) for b in range(1, RANK + 1)}
    return of_masks(lambda mask: sizes.get(tuple(mask), 0))


def whole_blocks(mask):
    pairs = mask.reshape(-1, 2)
    return (
        0.7 ** pairs[:, 0].sum() * 0.3 ** (~pairs[:, 0]).sum() * (pairs[:, 0] == pairs[:, 1]).all()
    )


ENUMERATED = {
    "bernoulli": (mask_law(0.7), coin_flips(0.7)),
    "exact-k": (mask_law(0.5, sampling="exact-k"), of_masks(lambda mask: mask.sum() == 3)),
    "antithetic": (mask_law(0.5, sampling="antithetic"), coin_flips(0.5)),
    "two": (mask_law(0.7, sampling="two"), coin_flips(0.7)),
    "blocks": (mask_law(0.7, sampling="blocks"), of_masks(whole_blocks)),
    "prefix": (mask_law(0.5, sampling="prefix", rescale="none"), prefix(lambda b: 1)),
    "prefix, geometric": (
        mask_law(0.5, sampling="prefix", rescale="none", prefix_geometric=0.15),
        prefix(lambda b: Fraction(85, 100) ** (b - 1)),
    ),
    "prefix, nested ranks": (
        mask_law(0.5, sampling="prefix", rescale="none", nested_ranks=[6, 1, 3]),
        prefix(lambda b: b in (1, 3, 6)),
    ),
}
LAW = pytest.mark.parametrize("name", ENUMERATED)
CONTINUOUS = {"fixed": {"rescale": "realized"}, "gaussian": {}, "haar": {}}


def with_rescale(law, rescale):
    return mask_law(**asdict(law) | {"rescale": rescale})


def moments_of(gates, weights):
    mean = weights @ gates
    return mean, gates.T @ (weights[:, None] * gates) - np.outer(mean, mean)


def test_all_laws_are_tested():
    assert LAWS.keys() == {law.sampling for law, _ in ENUMERATED.values()} | CONTINUOUS.keys()


@LAW
def test_a_law_is_that_of_its_masks(name):
    law, weights = ENUMERATED[name]
    pairs = weights[:, None] * weights
    shared = (MASKS[:, None] & MASKS).sum(-1)
    union = (MASKS[:, None] | MASKS).sum(-1)
    jaccard = np.where(union > 0, shared / np.maximum(union, 1), 1)
    kept = np.bincount(MASKS.sum(1), weights, RANK + 1)
    overlap = np.bincount(shared.ravel(), pairs.ravel(), RANK + 1)
    np.testing.assert_allclose(law.kept_pmf(RANK), kept, atol=1e-14)
    np.testing.assert_allclose(law.overlap_pmf(RANK), overlap, atol=1e-14)
    assert law.jaccard(RANK) == pytest.approx((pairs * jaccard).sum(), rel=1e-13)
    mean, covariance = moments_of(MASKS.astype(float), weights)
    moments = law.moments(RANK)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-14)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-14)
    independent = abs(covariance - np.diag(covariance.diagonal())).max() < 1e-14
    assert law.independent_gates == independent
    by_size = [np.ptp(weights[MASKS.sum(1) == k]) < 1e-14 for k in range(RANK + 1)]
    assert law.exchangeable == all(by_size)


@LAW
@pytest.mark.parametrize("rescale", ["none", "keep_prob", "realized"])
def test_gates_have_the_moments_that_are_stated(name, rescale):
    law, weights = ENUMERATED[name]
    if rescale not in law.rescales:
        with pytest.raises(UserError, match="makes no sense"):
            with_rescale(law, rescale)
        return
    factors = {
        "none": np.ones(len(MASKS)),
        "keep_prob": np.full(len(MASKS), 1 / law.keep_prob),
        "realized": RANK / np.maximum(MASKS.sum(1), 1),
    }
    law = with_rescale(law, rescale)
    gates = factors[rescale][:, None] * MASKS
    np.testing.assert_allclose(law.rescaled(MASKS), gates, rtol=1e-14)
    torch.testing.assert_close(
        law.rescaled(torch.from_numpy(MASKS)).double(), torch.from_numpy(gates)
    )
    mean, covariance = moments_of(gates, weights)
    np.testing.assert_allclose(law.gate_moments(RANK).mean, mean, atol=1e-13)
    np.testing.assert_allclose(law.gate_moments(RANK).covariance, covariance, atol=1e-13)


@LAW
def test_drawn_masks_follow_the_law(name):
    law, weights = ENUMERATED[name]
    uniform = np.random.default_rng(0).random((20_000, RANK))
    masks = law.draw(uniform)
    counts = np.bincount(masks @ (1 << np.arange(RANK)), minlength=2**RANK)
    expected = 20_000 * weights
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    assert np.array_equal(law.draw(torch.from_numpy(uniform)).numpy(), masks)


def test_prefix_gates_are_scaled_by_alpha_over_b():
    """DyLoRA's scaling: alpha / r times the gate is alpha / b."""
    law = mask_law(0.5, sampling="prefix", rescale="realized")
    for step in range(1, 20):
        b = int(law.step_mask(step, "m", RANK).sum())
        assert law.step_gates(step, "m", RANK).tolist() == [RANK / b] * b + [0] * (RANK - b)


def test_the_fixed_diagonal_is_that_of_matryoshka_lora():
    """Its Algorithm 1: P_i sums the scales alpha / r_j of the nested ranks that hold i."""
    alpha, ranks = 12, [1, 2, 4, 6]
    P = [sum(alpha / rank for rank in ranks if rank > i) for i in range(RANK)]
    law = mask_law(1.0, sampling="fixed", rescale="realized")
    gates = law.step_gates(3, "m", RANK)
    np.testing.assert_allclose(len(ranks) * alpha / RANK * gates, P, rtol=1e-14)
    np.testing.assert_allclose(law.gate_moments(RANK).mean, gates, rtol=1e-14)
    assert not law.gate_moments(RANK).covariance.any()
    uniform = torch.rand(2, 3, RANK)
    of_tokens = law.gates(uniform, step=1, module="m")
    torch.testing.assert_close(of_tokens, torch.from_numpy(gates).float().expand(2, 3, RANK))


@pytest.mark.parametrize("rescale", ["none", "keep_prob"])
def test_gaussian_gates_are_normal_numbers_with_the_moments_of_masks(rescale):
    law = mask_law(0.7, sampling="gaussian", rescale=rescale)
    uniform = torch.from_numpy(np.random.default_rng(0).random((20_000, 2)))
    gates = law.gates(uniform, step=1, module="m")
    moments, masks = law.gate_moments(2), mask_law(0.7, rescale=rescale).gate_moments(2)
    scale = moments.covariance[0, 0] ** 0.5
    assert stats.kstest(gates.flatten(), stats.norm(moments.mean[0], scale).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(gates.T)[0, 1]) < 4 / 20_000**0.5
    np.testing.assert_allclose(moments.mean, masks.mean)
    np.testing.assert_allclose(moments.covariance, masks.covariance)
    assert law.draw(torch.zeros(3)).isfinite().all()  # a uniform number may be 0


def test_haar_gates_are_projectors_in_a_random_basis():
    rank, kept, draws = 4, 2, 40_000
    law = mask_law(0.5, sampling="haar", rescale="none")
    uniform = np.random.default_rng(0).random((draws, *law.noise_shape(rank)))
    P = law.draw(uniform).numpy()
    np.testing.assert_allclose(P @ P, P, atol=1e-12)
    np.testing.assert_allclose(P.trace(axis1=1, axis2=2), kept, rtol=1e-12)
    diagonal, moments = P.diagonal(axis1=1, axis2=2), law.moments(rank)
    error = 4 * diagonal.std(0) / draws**0.5
    assert (abs(diagonal.mean(0) - moments.mean) < error).all()
    products = (diagonal - moments.mean)[:, :, None] * (diagonal - moments.mean)[:, None]
    error = 4 * products.std(0) / draws**0.5
    assert (abs(products.mean(0) - moments.covariance) < error).all()
    B, A = torch.randn(9, rank, dtype=torch.float64), torch.randn(rank, 7, dtype=torch.float64)
    energy = np.linalg.norm(B.numpy() @ P @ A.numpy(), axis=(1, 2)) ** 2
    expected = haar_energy(B, A, kept=kept)
    assert abs(energy.mean() - float(expected)) < 4 * energy.std() / draws**0.5
    np.testing.assert_allclose(
        mask_law(0.5, sampling="haar").gates(uniform[:1], step=1, module="m"), 2 * P[:1]
    )


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_haar_diagonal_follows_from_the_second_moment(kept):
    """Var P_11 is haar_energy at H_B = H_A = e_1 e_1^T, less the squared mean."""
    unit = torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64))
    law = Haar(max(kept, 1) / 3)
    expected = float(haar_energy(unit, unit, kept=max(kept, 1))) - law.keep_prob**2
    assert law.moments(3).covariance[0, 0] == pytest.approx(expected, abs=1e-15)


def test_a_record_names_its_law():
    settings = {"granularity": "token", "rescale": False, "seed": 7}
    assert mask_law(0.25, sampling="exact-k", **settings) == ExactK(0.25, **settings)
    assert mask_law(0.25).factor == 4
    assert mask_law(0.25, rescale=False).factor == 1
    assert mask_law(0.25, rescale=True) == mask_law(0.25, rescale="keep_prob")
    assert np.isnan(mask_law(0.25, rescale="realized").factor)
    for law, _ in ENUMERATED.values():
        assert mask_law(**asdict(law)) == law


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_prob": 0.0}, "keep_prob"),
        ({"keep_prob": 0.5, "sampling": "coin"}, "bernoulli, exact-k"),
        ({"keep_prob": 0.5, "rescale": "twice"}, "none, keep_prob or realized"),
        ({"keep_prob": 0.5, "block_size": 2}, "bernoulli has no setting block_size"),
        ({"keep_prob": 0.4, "sampling": "antithetic"}, "needs `keep_prob` 0.5"),
        ({"keep_prob": 0.5, "sampling": "prefix"}, "none or realized"),
        ({"keep_prob": 0.5, "sampling": "gaussian", "rescale": "realized"}, "none or keep_prob"),
        ({"keep_prob": 0.5, "schedule": "linear"}, "schedule_steps"),
        ({"keep_prob": 0.5, "schedule": "sometimes"}, "constant, linear, early or late"),
        ({"keep_prob": 0.5, "keep_prob_pattern": {"q_proj": 2.0}}, "`q_proj` must lie"),
        ({"keep_prob": 0.5, "dwell": 0}, "dwell"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        mask_law(**settings)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (ExactK(0.3), r"0\.3 x 8"),
        (mask_law(0.3, sampling="haar"), r"0\.3 x 8"),
        (mask_law(0.5, sampling="blocks", block_size=3), "does not divide"),
        (mask_law(0.5, sampling="prefix", rescale="none", nested_ranks=[2, 16]), "nested_ranks"),
        (ExactK(0.5, schedule="linear", schedule_steps=7), "x 8"),
        (Bernoulli(0.5, keep_prob_pattern={"k_proj": 0.7}), "names no module: 'k_proj'"),
    ],
)
def test_laws_that_do_not_fit_a_rank(law, message):
    with pytest.raises(UserError, match=message):
        law.check_modules({"layers.0.q_proj": 8})


@pytest.mark.parametrize("name", ["gaussian", "haar"])
def test_gates_that_are_no_masks_say_so(name):
    law = mask_law(0.5, sampling=name)
    for ask in (lambda: law.step_mask(1, "m", 4), lambda: law.kept_pmf(4), lambda: law.jaccard(4)):
        with pytest.raises(UserError, match="are not masks"):
            ask()


def test_antithetic_pairs_sum_to_one():
    law = Antithetic(0.5, seed=3, dwell=2)
    masks = [law.step_mask(step, "m", 8) for step in range(1, 9)]
    assert all((masks[t] == masks[t + 1]).all() for t in (0, 2, 4, 6))
    assert all((masks[t] ^ masks[t + 2]).all() for t in (0, 4))
    assert not (masks[0] == masks[4]).all()
