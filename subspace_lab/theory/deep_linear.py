"""Singular-value dynamics of a masked two-layer linear map under gradient flow.

The expected loss of B A against a target M = U diag(sigma) V^T with whitened inputs, masks of keep
probability q and rescale s, is

    (1/2) ||M - s q B A||_F^2 + (s^2 q (1-q) / 2) sum_i ||b_i||^2 ||a_i||^2,

which is (1/2) ||M - B A||^2 + (lam/2) sum_i ..., lam = (1-q)/q, at s = 1/q. Two manifolds of
balanced factors in the singular bases of M are invariant, and on them the singular values u_j of
B A obey closed equations (after Saxe, McClelland, Ganguli 2014, which is q = 1):

    aligned, one direction a mode:      du_j/dt = 2 s q u_j (sigma_j - s u_j),
    equalised, all products alike:      du_j/dt = 2 s q u_j (sigma_j - s q u_j
                                                             - s (1-q)/r sum_k u_k).

The aligned fixed point is a saddle of the expected loss: pairs of directions rotate into each
other (`equalization_rate`). The equalised flow is a Lotka-Volterra competition, whose weak modes
are suppressed. Stochastic masks follow these equations at small learning rates, from a small
balanced start; at large ones noise drags the typical growth (`typical_growth_exponent`).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.mask_moments import relative_variance


def aligned_strength(
    time: Float[np.ndarray, "*times"],
    *,
    target: float,
    start: float,
    keep_prob: float,
    rescale: float,
) -> Float[np.ndarray, "*times"]:
    """Logistic singular value of one mode on the aligned manifold.

        u(t) = k / (1 + (k/u_0 - 1) exp(-2 s q sigma t)),   k = sigma / s,

    exact for `start` > 0 and `target` > 0. At s = 1/q the early rate 2 sigma is LoRA's and the
    limit is sigma / (1 + lam) = q sigma; at s = 1 every early rate is multiplied by q.

    Args:
        time: gradient-flow time, learning rate x steps of the loss above.
        target: sigma, a singular value of M.
        start: u(0).
        keep_prob: q.
        rescale: s, 1 or 1/q.
    """
    check_keep_prob(keep_prob)
    limit = target / rescale
    decay = np.exp(-2 * rescale * keep_prob * target * time)
    return np.asarray(limit / (1 + (limit / start - 1) * decay))


def lotka_volterra_field(
    u: Float[np.ndarray, " modes"],
    *,
    targets: Float[np.ndarray, " modes"],
    rank: int,
    keep_prob: float,
    rescale: float,
) -> Float[np.ndarray, " modes"]:
    """Velocity du/dt of the singular values on the equalised manifold.

        du_j/dt = 2 s q u_j (sigma_j - s q u_j - (s (1-q) / r) sum_k u_k),

    at s = 1/q: 2 u_j (sigma_j - u_j - (lam/r) sum_k u_k). The manifold has
    B = U diag(sqrt u) Q, A = Q^T diag(sqrt u) V^T with all entries of Q equal to +-r^{-1/2} (a
    Hadamard matrix; at most r modes), and is invariant. The stable fixed point is the soft
    threshold s q u_j = (sigma_j - tau)_+, tau = (s (1-q) / r) sum_k u_k.
    """
    check_keep_prob(keep_prob)
    own = rescale * keep_prob * u
    shared = rescale * (1 - keep_prob) / rank * u.sum()
    return np.asarray(2 * rescale * keep_prob * u * (targets - own - shared))


def lotka_volterra_flow(
    time: Float[np.ndarray, " times"],
    *,
    start: Float[np.ndarray, " modes"],
    targets: Float[np.ndarray, " modes"],
    rank: int,
    keep_prob: float,
    rescale: float,
) -> Float[np.ndarray, "times modes"]:
    """Singular values on the equalised manifold, integrated from time 0 to relative error 1e-10.

    Args:
        time: ascending, non-negative.
        start: u(0), positive.
        targets: sigma, the singular values of M.
        rank: r, the number of directions; may exceed the number of modes.
        keep_prob: q.
        rescale: s.
    """

    def field(_: float, log_u: Float[np.ndarray, " modes"]) -> Float[np.ndarray, " modes"]:
        u = np.exp(log_u)
        velocity = lotka_volterra_field(
            u, targets=targets, rank=rank, keep_prob=keep_prob, rescale=rescale
        )
        return np.asarray(velocity / u)

    span = (0.0, float(time[-1]))
    solution = solve_ivp(field, span, np.log(start), "LSODA", time, rtol=1e-10, atol=1e-10)
    return np.asarray(np.exp(solution.y.T))


def equalization_rate(u1: float, u2: float, *, keep_prob: float, rescale: float) -> float:
    """Rate at which a pair of directions leaves the aligned fixed point towards equal products.

        (s q / 2) [sqrt(S^2 + 4 lam (1+lam) delta^2) - S],
        S = s q (u1 + u2),   delta = s q (u1 - u2),   lam = (1-q)/q,

    the one positive eigenvalue of the linearised flow of the pair: at least s q lam delta^2 / S,
    and 0 for equal modes. u1 and u2 are the fixed point's singular values sigma / s.

    >>> equalization_rate(2.0, 1.0, keep_prob=1.0, rescale=1.0)
    0.0
    """
    lam, mean_gate = relative_variance(keep_prob=keep_prob), rescale * keep_prob
    total, delta = mean_gate * (u1 + u2), mean_gate * (u1 - u2)
    return mean_gate / 2 * (math.sqrt(total**2 + 4 * lam * (1 + lam) * delta**2) - total)


def typical_growth_exponent(gain: float, *, keep_prob: float, rescale: float) -> float:
    """Log growth a step of a small mode's two factors under SGD with step masks.

        E log(1 + s d gain) = q log(1 + s gain),   gain = learning rate x sigma

    (u = ||b|| ||a|| grows twice as fast). It is what almost every run shows, by the law of large
    numbers, while the mean over runs grows by log(1 + s q gain).
    At s = 1/q it lags LoRA's log(1 + gain) by about gain^2 (1-q) / (2q): the drag of large
    learning rates. Holds while s^2 u is small against sigma, from a balanced start.

    >>> round(typical_growth_exponent(0.1, keep_prob=0.5, rescale=2.0), 4)
    0.0912
    """
    check_keep_prob(keep_prob)
    return keep_prob * math.log1p(rescale * gain)
