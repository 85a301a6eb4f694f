"""T16: the step of a dropped direction is known without the gradients, at every step of training.

It has no gradient, so the optimizer carries on with what it has: AdamW repeats the direction's last
step, shortened by a known factor, and SGD leaves it where it is, but for weight decay, which acts
on every direction. So the recorded displacements show which directions were dropped, from the first
step to the last. Kept directions get a gradient, and do not follow that law.

Masks per sample or per token drop no direction for a whole batch, and other optimizers (or SGD with
momentum) have other laws: that is not testable here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.mask_theory import chance, needs
from analyses.mask_theory.comparison import Comparison, NotTestableError, no_exceptions
from analyses.mask_theory.optimizer import Optimizer
from analyses.mask_theory.prediction import known, prediction
from analyses.mask_theory.record import Directions, Group, once
from subspace_lab.theory.adam import dropped_step

RESOLVED = 0.01  # of the step expected; coarser rounding of the weights hides whether it was taken
ARITHMETIC = 1e-5  # relative, of an optimizer that computes in float32
COINCIDENCE = 1e-3  # relative; a step with a gradient comes so close to one without by chance only
BY_CHANCE = 0.01  # share of steps that may
VANISHING = 0.1  # norm of a gradient beside earlier ones, below which it may not show

UNRESOLVED = "the rounding of the weights hides the steps"

of_every_step = functools.partial(
    prediction, always=(needs.STEP_MASKS, needs.LEARNING_RATES), tests="training"
)


@of_every_step(
    "T16",
    "steps of dropped directions",
    "directions that the record says were dropped got a gradient: the layers were not masked, or "
    "by other masks than the recorded ones",
    needs.ADAMW,
)
def dropped(group: Group) -> Comparison:
    """Under AdamW dropped directions repeat their last step, shortened."""
    kept, sides = group.masks_of(known(group.displacements).steps), _under_adamw(group)
    wrong = np.concatenate([~side.allowed[side.resolved & ~kept] for side in sides])
    if not wrong.size:
        raise NotTestableError(UNRESOLVED)
    return no_exceptions(wrong)


@of_every_step(
    "T16",
    "kept directions without a gradient",
    "directions that the record says were kept got no gradient: the layers were masked by other "
    "masks than the recorded ones, or the loss has no gradient any more",
    needs.ADAMW,
)
def kept(group: Group) -> Comparison:
    """Kept directions do not repeat their last step."""
    steps = known(group.displacements).steps
    usual = _usual_gradient(group.gradient_norms(steps), known(group.optimizer))
    kept = group.masks_of(steps) & usual[:, None, None]
    repeated = [side.repeated[side.resolved & kept] for side in _under_adamw(group)]
    if not sum(map(len, repeated)):
        raise NotTestableError(UNRESOLVED)
    why = "a step with a gradient comes so close once in a hundred times at most"
    return chance.at_most(np.concatenate(repeated), probability=BY_CHANCE, why=why)


@of_every_step(
    "T15",
    "masked directions stand still",
    "SGD moved directions whose gradient should be zero",
    needs.SGD,
)
def still(group: Group) -> Comparison:
    """Without momentum a dropped direction moves by -lr wd X_{t-1}: not at all without decay."""
    displacements, optimizer = known(group.displacements), known(group.optimizer)
    dropped = ~group.masks_of(displacements.steps)
    decays = known(group.learning_rates(displacements.steps)) * optimizer.weight_decay
    moved = []
    for side in (displacements.row, displacements.column):
        rounding = optimizer.rounding * side.size if optimizer.weight_decay else 0 * side.size
        moved.append((_without_decay(side, decays).length > 2 * rounding)[dropped])
    return no_exceptions(np.concatenate(moved))


@once
def _under_adamw(group: Group) -> list[_Steps]:
    displacements, optimizer = known(group.displacements), known(group.optimizer)
    rates = known(group.learning_rates(displacements.steps))
    return [_compare(side, rates, optimizer) for side in (displacements.row, displacements.column)]


class _Step(NamedTuple):
    """The step u_t of a direction without its weight decay, X_t = (1 - lr_t wd) X_{t-1} - u_t.

    Attributes, all (T, M, r):
        before: |X_{t-1}|.
        length: |u_t|.
        along: -u_t^T X_{t-1}.
        along_after: -u_t^T X_t.
    """

    before: NDArray[np.float64]
    length: NDArray[np.float64]
    along: NDArray[np.float64]
    along_after: NDArray[np.float64]


def _without_decay(side: Directions, decays: NDArray[np.float64]) -> _Step:
    """Take the decay lr_t wd (T,) off the recorded displacements: -u_t = Delta_t + lr_t wd X_{t-1}.

    All inner products follow from |X_t|, |Delta_t| and X_t^T Delta_t, as X_{t-1} = X_t - Delta_t.
    """
    decay = decays[:, None, None]
    displaced = side.along - side.step**2  # X_{t-1}^T Delta_t
    before = side.size**2 - 2 * side.along + side.step**2
    length = side.step**2 + 2 * decay * displaced + decay**2 * before
    return _Step(
        before=np.sqrt(before.clip(min=0)),
        length=np.sqrt(length.clip(min=0)),
        along=displaced + decay * before,
        along_after=side.along + decay * (side.size**2 - side.along),
    )


class _Steps(NamedTuple):
    """Steps of directions against the law of those without a gradient, all (T, M, r).

    Attributes:
        resolved: the weights' rounding is small beside the step that the law expects.
        allowed: it may be a step without a gradient, whatever eps does, up to rounding.
        repeated: it is the last step times the law's factor, to within 0.1 %.
    """

    resolved: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    repeated: NDArray[np.bool_]


def _compare(side: Directions, rates: NDArray[np.float64], optimizer: Optimizer) -> _Steps:
    """Compare the steps with AdamW's law u_t = c u_{t-1}, least <= c <= factor for each entry.

    Of the vectors the cores hold two numbers, so both are compared: the length, which must lie
    between least |u_{t-1}| and factor |u_{t-1}|, and the part along the unit vector x of X_{t-1},
    |x^T (u_t - factor u_{t-1})| <= (factor - least) |u_{t-1}|. Rounding adds its relative size
    times |X_t| to a step, twice that where a decay was rounded before.
    """
    step = _without_decay(side, rates * optimizer.weight_decay)
    last_length, last_along = np.roll([step.length, step.along_after], 1, axis=1)
    last_length[0] = last_along[0] = 0  # no step came before the first
    factor, least = np.zeros((2, len(rates), 1, 1))
    beta1, beta2 = optimizer.betas
    for t in range(2, len(rates) + 1):
        if rates[t - 2] > 0:
            ratio = rates[t - 1] / rates[t - 2]
            law = dropped_step(t, rate_ratio=ratio, beta1=beta1, beta2=beta2)
            factor[t - 1], least[t - 1] = law.factor, law.least
    expected = factor * last_length
    roundings = 2 if optimizer.weight_decay else 1
    rounded = roundings * optimizer.rounding * (side.size + factor * step.before)
    slack = rounded + ARITHMETIC * expected
    unit = np.divide(1, step.before, out=np.zeros_like(expected), where=step.before > 0)
    off = np.abs(step.along - factor * last_along) * unit
    close = COINCIDENCE * expected + slack
    return _Steps(
        resolved=slack < RESOLVED * expected,
        allowed=(step.length <= expected + slack)
        & (step.length >= least * last_length - slack)
        & (off <= (factor - least) * last_length + slack),
        repeated=(np.abs(step.length - expected) <= close) & (off <= close),
    )


def _usual_gradient(norms: NDArray[np.float64], optimizer: Optimizer) -> NDArray[np.bool_]:
    """Tell where the gradient (T,) does not vanish beside those that the momentum still holds.

    After a gradient that is much smaller than earlier ones a kept direction, too, repeats its step.
    """
    usual = np.ones(len(norms), dtype=bool)
    remembered = 0.0
    for place, norm in enumerate(norms.tolist()):
        usual[place] = not norm < VANISHING * remembered and norm not in (0, np.inf)
        remembered = optimizer.betas[0] * max(remembered, 0.0 if norm != norm else norm)
    return usual
