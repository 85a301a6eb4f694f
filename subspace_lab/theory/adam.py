"""Adam(W) under step masks: gradients g_t = d_t h_t with d_t ~ Bernoulli(q).

h_t is the gradient of a coordinate when its direction is kept, stationary and independent in time
with mean mu and standard deviation sigma; lam = (1-q)/q. Adam divides by the root of its second
moment, so any constant factor on g (the rescale 1/q) leaves the step alone, up to eps: it acts
through the forward pass only. All steps are in units of the learning rate, without weight decay,
after the bias corrections have died out unless a step number is given; eps = 0.
Derived from the update rule of Kingma and Ba 2015 and, for decoupled weight decay, Loshchilov and
Hutter 2019.

Real gradients are correlated in time and react to the masks, so these are null predictions. They
fail where (1-beta2) lam is not small: then the second moment is itself a random variable. What a
factor moves in all is not its mean step times the steps: `displacement_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.mask_moments import relative_variance


@dataclass(frozen=True)
class AdamStep:
    """A coordinate's step in units of the learning rate."""

    mean: float
    rms: float
    correction: float  # factor by which the mean deviates from its beta2 -> 1 limit, included


def effective_step_ratio(*, keep_prob: float) -> float:
    """Mean step under step masks over LoRA's: sqrt(q), at every signal-to-noise ratio.

    E m = q mu and E v = q (mu^2 + sigma^2), so E m / sqrt(E v) has the factor q / sqrt(q). Leading
    order in 1 - beta2; `adam_step` has the next. It is about the mean step under gates that a
    coordinate has to itself; masks per token average out (`token_step_ratio`), and the random part
    of the steps does not shrink (`displacement_ratio`). The control it implies, LoRA at learning
    rate x sqrt(q), is therefore the lower end of what masks may amount to.

    >>> effective_step_ratio(keep_prob=0.25)
    0.5
    """
    check_keep_prob(keep_prob)
    return math.sqrt(keep_prob)


def step_correction(
    mean: float = 1.0,
    std: float = 0.0,
    *,
    keep_prob: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> float:
    """E [m / sqrt(v)] over E m / sqrt(E v), to second order in the fluctuations of m and v.

        1 + (3/8) (1-b2)/(1+b2) (K/q - 1) - (1/2) (1-b1)(1-b2)/(1 - b1 b2) (T/q - 1),
        K = E h^4 / (E h^2)^2,   T = E h^3 / (E h E h^2),

    for Gaussian h; for constant h (std 0) K = T = 1 and K/q - 1 = lam: with the default betas
    -0.03 % at q = 0.5, -0.12 % at q = 0.2. A LoRA step (q = 1) has such a factor too, which is
    not 1 when std > 0: divide the two for a ratio of steps.
    """
    check_keep_prob(keep_prob)
    second = mean**2 + std**2
    fourth = (mean**4 + 6 * mean**2 * std**2 + 3 * std**4) / second**2
    third = (mean**2 + 3 * std**2) / second
    spread = (1 - beta2) / (1 + beta2) * (fourth / keep_prob - 1)
    shared = (1 - beta1) * (1 - beta2) / (1 - beta1 * beta2) * (third / keep_prob - 1)
    return 1 + 3 / 8 * spread - shared / 2


def adam_step(
    mean: float,
    std: float,
    *,
    keep_prob: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> AdamStep:
    """Mean and root mean square of a coordinate's step, masked steps included.

        mean  = sqrt(q) mu / sqrt(mu^2 + sigma^2) x correction,
        rms^2 = [q^2 mu^2 + (1-b1)/(1+b1) (q (mu^2 + sigma^2) - q^2 mu^2)] / (q (mu^2 + sigma^2)).

    Args:
        mean: mu, of the unmasked gradient; `std` is sigma. Only mu / sigma matters.
        std: sigma; not both zero.
        keep_prob: q; 1 for LoRA.
        beta1: decay of the first moment.
        beta2: decay of the second moment. The rms is leading order in 1 - beta2.

    >>> adam_step(0.0, 1.0, keep_prob=0.5, beta1=0.0).rms
    1.0
    """
    check_keep_prob(keep_prob)
    power = keep_prob * (mean**2 + std**2)
    signal = (keep_prob * mean) ** 2
    correction = step_correction(mean, std, keep_prob=keep_prob, beta1=beta1, beta2=beta2)
    return AdamStep(
        mean=keep_prob * mean / math.sqrt(power) * correction,
        rms=math.sqrt((signal + (1 - beta1) / (1 + beta1) * (power - signal)) / power),
        correction=correction,
    )


def leakage(*, keep_prob: float, beta1: float = 0.9) -> float:
    """Fraction of the displacement made on steps at which the coordinate is masked: b1 (1-q).

    On a masked step the moment is b1 times the last one, on average b1 E m. Exact for SGD with
    momentum b1 (0 without momentum); for Adam leading order in 1 - beta2. Of a single gradient's
    total effect only 1 - b1 is applied on the step it arrives.

    >>> round(leakage(keep_prob=0.5), 3)
    0.45
    """
    check_keep_prob(keep_prob)
    return beta1 * (1 - keep_prob)


def first_activation_step(step: int, *, beta1: float = 0.9, beta2: float = 0.999) -> float:
    """|step| of a coordinate whose first non-zero gradient comes at optimizer step t0 >= 1.

        (1-b1) / (1-b1^t0) x sqrt((1-b2^t0) / (1-b2)),

    exact: the bias corrections count all steps while both moments hold one gradient. 1 at t0 = 1,
    a dip near t0 = 10, and above 1 for late arrivals, up to (1-b1) / sqrt(1-b2) = 3.2.

    Raises:
        ValueError: step below 1.

    >>> [round(first_activation_step(t), 2) for t in (1, 2, 10, 50, 1000)]
    [1.0, 0.74, 0.48, 0.7, 2.51]
    """
    if step < 1:
        raise ValueError(f"optimizer steps count from 1, not {step}")
    return (1 - beta1) / (1 - beta1**step) * math.sqrt((1 - beta2**step) / (1 - beta2))


@dataclass(frozen=True)
class DroppedStep:
    """Factors that turn a direction's last step into its step without a gradient."""

    factor: float  # where the gradients behind the second moment are far above eps
    least: float  # where they are far below it; entries in between lie in between


def dropped_step(
    step: int, *, rate_ratio: float = 1.0, beta1: float = 0.9, beta2: float = 0.999
) -> DroppedStep:
    """Step t of an entry whose gradient is 0, over its step t - 1: known without the gradients.

    Both moments only decay, m_t = b1 m_{t-1} and v_t = b2 v_{t-1}, so that with eps = 0

        u_t / u_{t-1} = (lr_t / lr_{t-1}) b1 (1 - b1^{t-1}) / (1 - b1^t) / rho_t,
        rho_t = sqrt(b2 (1 - b2^{t-1}) / (1 - b2^t)) < 1,

    the same for all entries: a dropped direction repeats its last step, shorter. With eps each
    entry has a factor of its own, between rho_t times that (v below eps^2) and that. Exact for
    Adam and AdamW, where u is the step without its decay, X_t = (1 - lr_t wd) X_{t-1} - u_t:
    decoupled decay moves a dropped direction as any other. Clipping the norm of the gradients
    multiplies a zero by a number, and changes nothing. There is no such law for masks per sample
    or per token, which drop no direction for a whole batch, nor for Adam with weight decay in the
    gradient.

    Args:
        step: t, from 2: in step 1 a dropped direction stands still.
        rate_ratio: lr_t / lr_{t-1}.
        beta1: decay of the first moment.
        beta2: decay of the second moment.

    Raises:
        ValueError: step below 2.

    >>> round(dropped_step(1000, rate_ratio=1.0).factor, 4)
    0.9007
    """
    if step < 2:
        raise ValueError(f"only from step 2 on is there a last step to repeat, not at {step}")
    least = rate_ratio * beta1 * (1 - beta1 ** (step - 1)) / (1 - beta1**step)
    rho = math.sqrt(beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step))
    return DroppedStep(factor=least / rho, least=least)


def first_gradient_step(*, keep_prob: float) -> float:
    """Mean step at which a row of A gets its first gradient from the start B = 0: 2/q.

    Its gradient is s d_i b_i^T G, so b_i must have moved, on the direction's first activation:
    a_i starts on the second. Steps count from 1; LoRA's is 2.

    >>> first_gradient_step(keep_prob=0.5)
    4.0
    """
    check_keep_prob(keep_prob)
    return 2 / keep_prob


def token_step_ratio(*, keep_prob: float, tokens: int) -> float:
    """Mean step under token masks over LoRA's: 1 / sqrt(1 + lam/N), close to 1.

    For N tokens of equal gradient h, g = h (number kept) / N; at N = 1 it is sqrt(q). Tokens whose
    gradients cancel in the mean raise the mask noise: the ratio is then 1 / sqrt(1 + lam / N_eff),
    N_eff = N (mean token gradient)^2 / (mean square token gradient).

    >>> round(token_step_ratio(keep_prob=0.5, tokens=64), 3)
    0.992
    """
    return 1 / math.sqrt(1 + relative_variance(keep_prob=keep_prob) / tokens)


def displacement_ratio(walk_share: float, *, step_ratio: float) -> float:
    """Root mean square displacement of a factor over LoRA's, under gradients of the same law.

        sqrt(kappa^2 + (1 - kappa^2) w),   w = n sum_t lr_t^2 / ||X_T - X_0||_F^2 of LoRA,

    with kappa = `step_ratio`: sqrt(q) for step masks (`effective_step_ratio`), `token_step_ratio`
    for token masks. w is the share of LoRA's squared displacement that n independent steps of
    length lr_t would make: 0 where gradients drift, which leaves kappa, and 1 where they are
    independent in time, which leaves 1. Gates are drawn anew in each step, so they lengthen the
    random walk by as much as they shorten the mean: h_t may be correlated in time in any way, but
    must have one second moment throughout and the same law as LoRA's. Leading order in 1 - beta2
    and in 1 / ((1 - beta1) T).

    >>> displacement_ratio(0.0, step_ratio=0.5), displacement_ratio(1.0, step_ratio=0.5)
    (0.5, 1.0)
    """
    return math.sqrt(step_ratio**2 + (1 - step_ratio**2) * walk_share)


def weight_decay_ratio(*, keep_prob: float) -> float:
    """Decay over learning, relative to LoRA under AdamW: 1 / sqrt(q).

    Decoupled decay multiplies every coordinate by 1 - lr x weight_decay at every step, masked or
    not, while the mean step under step masks shrinks by sqrt(q).

    >>> weight_decay_ratio(keep_prob=0.25)
    2.0
    """
    return 1 / effective_step_ratio(keep_prob=keep_prob)


def squared_leakage(*, keep_prob: float, beta1: float = 0.9) -> float:
    """Share of the summed squared step length on masked steps: b1^2 (1-q).

    On a masked step the moment is b1 times the last one, so its square is on average b1^2 E m^2, at
    every signal-to-noise ratio: less than the share b1 (1-q) of the mean displacement (`leakage`).
    Exact for SGD with momentum b1; for Adam leading order in 1 - beta2. It is the ratio of two sums
    over many coordinates or steps; a mean of ratios of few directions lies above it (by 0.01 to
    0.03 at r = 8, q = 0.5).

    >>> round(squared_leakage(keep_prob=0.5), 3)
    0.405
    """
    check_keep_prob(keep_prob)
    return beta1**2 * (1 - keep_prob)
