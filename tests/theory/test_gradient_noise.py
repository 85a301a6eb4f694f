import pytest
import torch

from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.gradient_noise import (
    DirectionNoise,
    gradient_covariance,
    gradient_noise,
    noise_only_gradient,
)

QS = [0.3, 0.5, 0.8]


def problem(seed=0, m=4, r=3, n=5, N=3):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(m, r), (r, n), (n, N), (m, N)]
    return [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]


def gradients(B, A, X, Y, gates, s):
    """Autograd's gradients under each row of gates, (rows, r, m) and (rows, r, n).

    A row holds r gates for each of K masks, which N/K neighboring tokens share.
    """
    N, r = X.shape[1], B.shape[1]

    def loss(B, A, gates):
        Z = gates.reshape(-1, r).repeat_interleave(N * r // len(gates), 0).T * (A @ X)
        return (Y - s * B @ Z).square().sum() / (2 * N)

    grad_B, grad_A = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, None, 0))(
        B, A, gates
    )
    return grad_B.mT, grad_A


def moments(values, probability):
    mean = torch.einsum("k,k...->...", probability, values)
    centred = values - mean
    return mean, torch.einsum("k,kia,kjb->iajb", probability, centred, centred)


def worst(a, b):
    return (a - b).abs().max() / b.abs().max()


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize(
    ("granularity", "masks", "tokens"), [("step", 1, 3), ("sample", 2, 4), ("token", 3, 3)]
)
@pytest.mark.parametrize("rescaled", [True, False])
def test_moments_by_enumeration(q, granularity, masks, tokens, rescaled, deviation):
    B, A, X, Y = problem(N=tokens)
    law = {"keep_prob": q, "rescale": 1 / q if rescaled else 1.0, "scaling": 0.7, "masks": masks}
    gates = all_masks(B.shape[1] * masks)
    probability = mask_probabilities(gates, keep_prob=q)
    values = gradients(B, A, X, Y, gates.double(), 0.7 * law["rescale"])
    predicted, full = gradient_noise(B, A, X, Y, **law), gradient_covariance(B, A, X, Y, **law)
    for factor, found in zip("BA", values, strict=True):
        mean, cov = moments(found, probability)
        part, cov_part = getattr(predicted, factor), getattr(full, factor)
        trace = torch.einsum("iaia->i", cov)
        name = f"T10: per-{granularity} {{}} of {factor}'s gradient"
        deviation(name.format("mean"), gradient_noise, worst(part.mean, mean), 1e-12)
        deviation(name.format("variance"), gradient_noise, worst(part.variance, trace), 1e-12)
        deviation(name.format("covariance"), gradient_covariance, worst(cov_part.total, cov), 1e-12)
        for order in ["first_order", "second_order"]:
            blocks = torch.einsum("iaia->i", getattr(cov_part, order))
            error = worst(getattr(part, order), blocks)
            deviation(name.format(order), gradient_covariance, error, 1e-12)


def test_antithetic_pair_keeps_the_second_order(deviation):
    B, A, X, Y = problem(1)
    masks = all_masks(3)
    probability = mask_probabilities(masks, keep_prob=0.5)
    noise = gradient_noise(B, A, X, Y, masks=1, keep_prob=0.5, rescale=2.0)
    pairs = [
        (one + other) / 2
        for one, other in zip(
            gradients(B, A, X, Y, masks.double(), 2.0),
            gradients(B, A, X, Y, (~masks).double(), 2.0),
            strict=True,
        )
    ]
    for factor, found in zip("BA", pairs, strict=True):
        _, cov = moments(found, probability)
        part = getattr(noise, factor)
        deviation(
            "T10: a mask and its complement remove the odd orders at q = 1/2",
            DirectionNoise.antithetic,
            worst(part.antithetic(), torch.einsum("iaia->i", cov)),
            1e-12,
        )
        assert (part.antithetic() < part.averaged(2)).all()


def test_wrong_arguments():
    B, A, X, Y = problem()
    with pytest.raises(ValueError, match=r"keep_prob 0\.5"):
        gradient_noise(B, A, X, Y, masks=1, keep_prob=0.4, rescale=1.0).B.antithetic()
    with pytest.raises(ValueError, match="masks must divide the 3 tokens"):
        gradient_noise(B, A, X, Y, masks=2, keep_prob=0.4, rescale=1.0)


def test_two_averaged_masks_halve_the_noise(deviation):
    B, A, X, Y = problem(2)
    masks, q = all_masks(3), 0.3
    one = mask_probabilities(masks, keep_prob=q)
    values, _ = gradients(B, A, X, Y, masks.double(), 1 / q)
    mean = (values[:, None] + values[None]).flatten(0, 1) / 2
    _, cov = moments(mean, torch.outer(one, one).flatten())
    predicted = gradient_noise(B, A, X, Y, masks=1, keep_prob=q, rescale=1 / q).B.averaged(2)
    deviation(
        "T10: K averaged masks divide the noise by K",
        DirectionNoise.averaged,
        worst(predicted, torch.einsum("iaia->i", cov)),
        1e-12,
    )


def test_noise_only_arm_has_the_mask_noise_and_no_bias(deviation):
    B, A, X, Y = problem(3)
    masks, q = all_masks(3), 0.3
    one = mask_probabilities(masks, keep_prob=q)
    values, _ = gradients(B, A, X, Y, masks.double(), 1 / q)
    full = gradients(B, A, X, Y, torch.ones(1, 3, dtype=torch.float64), 1.0)[0][0]
    arm = torch.stack([noise_only_gradient(full, a, b) for a in values for b in values])
    mean, cov = moments(arm, torch.outer(one, one).flatten())
    expected = gradient_covariance(B, A, X, Y, masks=1, keep_prob=q, rescale=1 / q).B.total
    deviation("T10: noise-only arm, mean", noise_only_gradient, worst(mean, full), 1e-12)
    deviation("T10: noise-only arm, covariance", noise_only_gradient, worst(cov, expected), 1e-12)


def test_noise_to_signal_at_least_the_mask_odds(deviation):
    q = 0.4
    for seed in range(5):
        B, A, X, Y = problem(seed)
        for scale, tolerance in [(1.0, None), (0.0, 1e-13)]:
            noise = gradient_noise(scale * B, A, X, Y, masks=1, keep_prob=q, rescale=1 / q).B
            excess = noise.variance / noise.mean.square().sum(-1) - (1 - q) / q
            assert (excess > -1e-12).all()
            if tolerance:
                statement = "T10: noise / signal = (1-q)/q at B = 0"
                deviation(statement, gradient_noise, excess.max(), tolerance)


def test_step_noise_is_flat_in_the_batch_and_token_noise_falls(deviation):
    B, A, X, Y = problem(4)
    X8, Y8 = X.repeat(1, 8), Y.repeat(1, 8)  # the same tokens eight times: signal unchanged

    def noise(X, Y, masks):
        return gradient_noise(B, A, X, Y, masks=masks, keep_prob=0.5, rescale=2.0).B

    step, step8 = noise(X, Y, 1), noise(X8, Y8, 1)
    token, token8 = noise(X, Y, 3), noise(X8, Y8, 24)
    deviation(
        "T10: step noise independent of the batch size",
        gradient_noise,
        worst(step8.variance, step.variance),
        1e-12,
    )
    deviation(
        "T10: token noise falls as 1/N",
        gradient_noise,
        worst(token8.variance * 8, token.variance),
        1e-12,
    )


def test_noise_at_a_stationary_point_needs_off_diagonal_grams(deviation):
    draw = torch.Generator().manual_seed(5)
    n, r, q = 5, 3, 0.5
    orthogonal = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=draw))[0]
    X = orthogonal * n**0.5  # Sigma = I
    A = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ orthogonal[:, :r].T
    B = torch.randn(4, r, dtype=torch.float64, generator=draw)
    Y = (B / q) @ A @ X  # makes v = 0 where S is diagonal
    quiet = gradient_noise(B, A, X, Y, masks=1, keep_prob=q, rescale=1 / q).B
    statement = "T10: no noise in g_B at v = 0 with S diagonal"
    deviation(statement, gradient_noise, quiet.variance.max(), 1e-24)
    A = A + 0.5 * A.roll(1, 0)  # S no longer diagonal
    S = A @ A.T
    T = S.clone().fill_diagonal_(0)
    Y = (B @ (T + torch.diag(S.diagonal()) / q) @ torch.linalg.inv(S)) @ A @ X  # again v = 0
    loud = gradient_noise(B, A, X, Y, masks=1, keep_prob=q, rescale=1 / q).B
    assert loud.mean.abs().max() < 1e-12
    assert (loud.variance > 0.1).all()
