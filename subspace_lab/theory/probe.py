"""T7 as an experiment: find out, from outputs alone, which rank mask a layer applies.

The layer maps x (batch, seq, n) to y = s γ B diag(d) A x (batch, seq, m) with random masks d. Every
probe input is a unit vector of R^n and occurs twice in each sequence. Two outputs for the same
input have the covariance s^2 q (1 - q) sum_i ||b_i||^2 z_i^2 (times γ^2, z = A x) where they share
a mask, and 0 where they do not: the correlation between tokens, samples and calls is 1 or 0.

Unit vectors take input dropout out of the picture: it can only zero an output as a whole, and
such outputs are left out. Then q follows from the outputs' geometry, without a look at B or A:

- masks per step or sample: the outputs of one draw for many inputs have rank |M|;
- masks per token: u = Cov(y)^{-1} E[y] gives u^T y proportional to |M|, so that
  E[y]^T Cov(y)^{-1} E[y] = (E|M|)^2 / Var|M| = r q / (1 - q), r the rank of all outputs.

The rescale factor s needs the unmasked output as a reference. Nothing is guessed: whatever the
outputs do not settle stays None or "undecided", with the reason in `doubts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor, nn

Layer = Callable[[Tensor], Tensor]

DECISION = 4.0  # standard errors that a decision needs
ROUNDING = 0.01  # what is allowed for bias and rounding beside the standard error
JACKKNIFE_GROUPS = 16
SKEWNESS_TOLERANCE = 0.25


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over independent steps."""

    value: float
    standard_error: float

    def differs_from(self, value: float) -> bool:
        """Whether `value` is out of reach of the estimate."""
        return abs(self.value - value) > DECISION * self.standard_error + ROUNDING


@dataclass(frozen=True)
class MaskProbe:
    """What a layer's outputs say about its rank mask, with the evidence.

    A mask per "step" is one for the whole call; `shared_between_calls` says whether two successive
    calls use the same masks. `rescale` "mask_mean" divides by the kept fraction of the mask drawn,
    and then has no one `rescale_factor`.
    """

    granularity: Literal["step", "sample", "token", "undecided"] = "undecided"
    shared_between_calls: bool | None = None
    rescale: Literal["none", "inverse_keep_prob", "mask_mean", "undecided"] = "undecided"
    keep_prob: Estimate | None = None
    rescale_factor: Estimate | None = None
    rank: int | None = None
    input_keep_prob: float | None = None  # of input dropout; 1 within errors where there is none
    token_correlation: Estimate | None = None  # between tokens of a sample
    sample_correlation: Estimate | None = None  # between samples of a call
    call_correlation: Estimate | None = None  # between successive calls
    gain: Estimate | None = None  # mean masked output over unmasked output, s q
    certainty: float = 0.0  # least distance of the correlations from 1/2, in standard errors
    doubts: tuple[str, ...] = ()


class _Outputs(NamedTuple):
    """Outputs in a generic projection; `copy` tells an input's two places in the sequence."""

    values: Float[Tensor, "step call sample copy input k"]
    alive: Bool[Tensor, "step call sample copy input"]  # False: zeroed as a whole
    full: Float[Tensor, "input k"] | None
    tolerance: float  # relative size below which a singular value is rounding


def probe_mask(
    layer: Layer,
    in_features: int,
    *,
    full: Layer | None = None,
    advance: Callable[[], object] | None = None,
    steps: int = 128,
    batch: int = 4,
    max_rank: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MaskProbe:
    """Probe a stochastic low-rank layer; see the module's docstring for how.

    The layer must give the update alone, without the base layer's output. It is called
    2 `steps` + 1 times. A module is put into train mode for the probe, and back; the global random
    state is left as it was. keep_prob is told if the rows of A and columns of B are independent and
    r <= max_rank, r < m; rank 1 cannot be told from input dropout.

    Args:
        layer: the callable or module, (batch, seq, n) to (batch, seq, m).
        in_features: the n of the layer.
        full: gives the unmasked output; None means a module's own output in eval mode. Without
            either the rescale stays undecided.
        advance: called before each two calls; for a layer that draws its mask once per optimizer
            step this must start a new step. Without it all calls follow each other.
        steps: pairs of calls, the sample size.
        batch: samples per call, at least 2.
        max_rank: largest rank to look for; memory grows with its square.
        seed: of the probe's inputs and of the global random state during it.
        dtype: of the inputs; half precision hides the rank, so keep_prob stays undecided.
        device: of the inputs.

    Raises:
        ValueError: fewer than 16 steps, or 2 samples, which leave no standard error.
    """
    if steps < JACKKNIFE_GROUPS or batch < 2:
        raise ValueError(f"the probe needs {JACKKNIFE_GROUPS} steps and 2 samples or more")
    generator = torch.Generator().manual_seed(seed)
    inputs = min(in_features, 2 * max_rank)
    units = torch.zeros(inputs, in_features)
    units[torch.arange(inputs), torch.randperm(in_features, generator=generator)[:inputs]] = 1
    x = units.repeat(2, 1).expand(batch, -1, -1).to(device, dtype)
    modes = {m: m.training for m in layer.modules()} if isinstance(layer, nn.Module) else {}
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        try:
            outputs = _collect(layer, x, full=full, advance=advance, steps=steps)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return _judge(outputs, chained=advance is None)


def _collect(
    layer: Layer,
    x: Float[Tensor, "sample token n"],
    *,
    full: Layer | None,
    advance: Callable[[], object] | None,
    steps: int,
) -> _Outputs:
    inputs = x.shape[1] // 2
    if full is None and isinstance(layer, nn.Module):
        full = layer.eval()
    unmasked = None if full is None else full(x)[0, :inputs].double().cpu()
    if isinstance(layer, nn.Module):
        layer.train()
    values, alive, sketch = [], [], None
    for call in range(2 * steps):
        if advance is not None and call % 2 == 0:
            advance()
        y = layer(x)
        if sketch is None:
            # A generic projection keeps zeros, and ranks up to its own.
            tolerance = 100 * torch.finfo(y.dtype).eps + 1e-12
            sketch = torch.linalg.qr(torch.randn(y.shape[-1], min(y.shape[-1], inputs)).double()).Q
        alive.append((y != 0).any(-1).cpu())
        values.append(y.double().cpu() @ sketch)
    assert sketch is not None
    return _Outputs(
        values=torch.stack(values).unflatten(0, (steps, 2)).unflatten(3, (2, inputs)),
        alive=torch.stack(alive).unflatten(0, (steps, 2)).unflatten(3, (2, inputs)),
        full=None if unmasked is None else unmasked @ sketch,
        tolerance=tolerance,
    )


def _judge(outputs: _Outputs, *, chained: bool) -> MaskProbe:
    if not outputs.values.isfinite().all():
        return MaskProbe(doubts=("the outputs are not finite",))
    alive = outputs.alive[..., None]
    mean = (outputs.values * alive).sum((0, 1, 2, 3)) / alive.sum((0, 1, 2, 3)).clamp_min(1)
    centred = (outputs.values - mean) * alive
    if centred.norm() <= outputs.tolerance / 10 * outputs.values.norm():
        return MaskProbe(doubts=("the output shows no mask: zero, or the same in all calls",))
    probe = _sharing(centred, outputs.alive, chained=chained)
    if probe.granularity == "undecided":
        return probe
    if outputs.tolerance > 1e-3:
        return _doubt(probe, "half precision hides the rank of the outputs")
    rank, basis = _row_space(outputs)
    if rank == outputs.values.shape[-1]:
        return _doubt(
            probe,
            "the outputs span all probed dimensions: the rank is above max_rank or not below m, or "
            "the base layer's output is included",
        )
    outputs = outputs._replace(
        values=outputs.values @ basis,
        full=None if outputs.full is None else outputs.full @ basis,
    )
    probe = replace(probe, rank=rank)
    if probe.granularity == "token":
        return _rescale(outputs, _token_keep_prob(outputs, probe), counts=None)
    # One mask serves a whole sequence, whose outputs then have the rank |M|.
    sigma = torch.linalg.svdvals(outputs.values.flatten(3, 4))
    relative = sigma / sigma.amax() / outputs.tolerance
    if ((relative > 0.1) & (relative < 10)).any():
        return _doubt(probe, "the factors are too ill-conditioned to count kept directions")
    counts = (relative > 1).sum(-1)
    probe = replace(
        probe,
        keep_prob=_mean(counts / rank),
        input_keep_prob=float(outputs.alive[counts > 0].double().mean()),
    )
    return _rescale(outputs, probe, counts=counts)


def _sharing(centred: Tensor, alive: Tensor, *, chained: bool) -> MaskProbe:
    """Decide which outputs share a mask, from the correlations between them."""

    def correlation(first: Tensor, second: Tensor, both: Tensor) -> Estimate:
        weight = both[..., None]
        return _ratio(first * second * weight, (first**2 + second**2) / 2 * weight)

    calls, present = centred.flatten(0, 1), alive.flatten(0, 1)
    step = 1 if chained else 2
    correlations = (
        correlation(centred[:, :, :, 0], centred[:, :, :, 1], alive.all(3)),
        correlation(centred, centred.roll(1, 2), alive & alive.roll(1, 2)),
        correlation(calls[:-1:step], calls[1::step], present[:-1:step] & present[1::step]),
    )
    distances = [
        abs(found.value - 0.5) / max(found.standard_error, 1e-12) for found in correlations
    ]
    token, sample, call = (
        None if distance < DECISION else found.value > 0.5
        for distance, found in zip(distances, correlations, strict=True)
    )
    granularity: Literal["step", "sample", "token", "undecided"] = "undecided"
    doubts = []
    if token is None or sample is None:
        doubts.append("too few steps to tell whether tokens or samples share a mask")
    elif sample and not token:
        doubts.append("samples share a mask and tokens do not: none of the known granularities")
    else:
        granularity = "step" if sample else "sample" if token else "token"
    if call is None:
        doubts.append("too few steps to tell whether calls share a mask, or only some do")
    return MaskProbe(
        granularity=granularity,
        shared_between_calls=call,
        token_correlation=correlations[0],
        sample_correlation=correlations[1],
        call_correlation=correlations[2],
        certainty=min(distances),
        doubts=tuple(doubts),
    )


def _row_space(outputs: _Outputs) -> tuple[int, Float[Tensor, "k r"]]:
    """Rank of all outputs together, and an orthonormal basis of their span."""
    triangle = torch.linalg.qr(outputs.values.flatten(0, 4), mode="r").R
    _, sigma, Vh = torch.linalg.svd(triangle)
    rank = int((sigma > outputs.tolerance * sigma[0]).sum())
    return rank, Vh[:rank].mT


def _token_keep_prob(outputs: _Outputs, probe: MaskProbe) -> MaskProbe:
    """keep_prob and input_keep_prob for masks per token, from (E|M|)^2 / Var|M|."""
    rank, tokens = outputs.values.shape[-1], outputs.alive.numel()
    zeros = float((~outputs.alive).double().mean())
    lowest = 0
    fit = _binomial_fit(outputs.values, torch.ones_like(outputs.alive), lowest=lowest)
    if fit is not None:
        pruned = 1 - fit.keep_prob.value
        error = math.hypot(
            math.sqrt(zeros * (1 - zeros) / tokens),
            rank * pruned ** (rank - 1) * fit.keep_prob.standard_error,
        )
        if abs(zeros - pruned**rank) > DECISION * error + 1 / tokens:
            # Not as many zeros as empty masks make: input dropout. Fit the nonempty masks alone.
            lowest = 1
            fit = _binomial_fit(outputs.values, outputs.alive, lowest=lowest)
    if fit is None or (
        abs(fit.skewness - _count_law(fit.keep_prob.value, rank, lowest).skewness)
        > SKEWNESS_TOLERANCE
    ):
        return _doubt(
            probe,
            "the number of kept directions is not binomial: dependent factors, an exact-k mask, "
            "a rescale by the mask's mean, or the base layer's output",
        )
    nonempty = 1 - (1 - fit.keep_prob.value) ** rank
    return replace(probe, keep_prob=fit.keep_prob, input_keep_prob=(1 - zeros) / nonempty)


class _BinomialFit(NamedTuple):
    keep_prob: Estimate
    skewness: float  # of the counts |M|


def _binomial_fit(values: Tensor, weight: Tensor, *, lowest: int) -> _BinomialFit | None:
    """keep_prob by a jackknife over groups of steps; None where |M| does not vary."""
    rank = values.shape[-1]
    groups = []
    for y, w in zip(
        values.tensor_split(JACKKNIFE_GROUPS), weight.tensor_split(JACKKNIFE_GROUPS), strict=True
    ):
        y, w = y.flatten(0, 3), w.flatten(0, 3).double()[..., None]
        moment = torch.einsum("tpi,tpj->pij", y * w, y)
        groups.append((w.sum(0), (w * y).sum(0), moment))
    total = [torch.stack(part).sum(0) for part in zip(*groups, strict=True)]

    def covariance(count: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (second - first[:, :, None] * first[:, None] / count[..., None]) / (
            count[..., None] - 1
        )

    def fit(count: Tensor, first: Tensor, second: Tensor) -> float:
        u = torch.linalg.solve(covariance(count, first, second), first / count)
        return _solve_keep_prob(float((u * first / count).sum(-1).mean()), rank, lowest)

    spectra = torch.linalg.eigvalsh(covariance(*total))
    if (spectra[:, 0] < 1e-12 * spectra[:, -1]).any():
        return None
    mean = total[1] / total[0]
    u = torch.linalg.solve(covariance(*total), mean)
    whole = fit(*total)
    left_out = [
        fit(*(everything - part for everything, part in zip(total, group, strict=True)))
        for group in groups
    ]
    G, average = JACKKNIFE_GROUPS, float(np.mean(left_out))
    error = math.sqrt((G - 1) / G * np.sum(np.subtract(left_out, average) ** 2))
    projections = ((values - mean) * u).sum(-1).masked_fill(~weight, torch.nan)
    cubes, squares = ((projections**power).flatten(0, 3).nanmean(0) for power in (3, 2))
    return _BinomialFit(
        keep_prob=Estimate(G * whole - (G - 1) * average, error),
        skewness=float((cubes / squares**1.5).mean()),
    )


class _CountLaw(NamedTuple):
    ratio: float  # (E|M|)^2 / Var|M|
    skewness: float


def _count_law(keep_prob: float, rank: int, lowest: int) -> _CountLaw:
    """Bin(r, q), or with `lowest` = 1 the same without the empty mask."""
    counts = np.arange(lowest, rank + 1)
    pmf = stats.binom.pmf(counts, rank, keep_prob)
    pmf /= pmf.sum()
    mean = pmf @ counts
    variance, third = (pmf @ (counts - mean) ** power for power in (2, 3))
    return _CountLaw(float(mean**2 / variance), float(third / variance**1.5))


def _solve_keep_prob(ratio: float, rank: int, lowest: int) -> float:
    if lowest == 0:
        return ratio / (ratio + rank)
    # Without empty masks a small q gives a large ratio too; the skewness tells the two apart.
    least = optimize.minimize_scalar(
        lambda q: _count_law(q, rank, lowest).ratio, bounds=(1e-6, 1 - 1e-9), method="bounded"
    ).x
    if ratio <= _count_law(least, rank, lowest).ratio:
        return float(least)
    return float(
        optimize.brentq(lambda q: _count_law(q, rank, lowest).ratio - ratio, least, 1 - 1e-9)
    )


def _rescale(outputs: _Outputs, probe: MaskProbe, *, counts: Tensor | None) -> MaskProbe:
    """Compare with the unmasked outputs: gain s q, rescale factor s, and the kind of rescale."""
    rank, keep_prob = outputs.values.shape[-1], probe.keep_prob
    if outputs.full is None:
        return _doubt(probe, "there is no unmasked output to tell the rescale from")
    if torch.linalg.matrix_rank(outputs.full, rtol=outputs.tolerance) < rank:
        return _doubt(probe, "the unmasked output has a lower rank than the masked ones")
    # trace(pinv(A^T B^T) A^T D B^T s) = s |M|, for masks per token on average over tokens.
    dual = torch.linalg.pinv(outputs.full)
    scaled_counts = torch.einsum("scbdpk,kp->scb", outputs.values, dual) / 2
    gain = _mean(scaled_counts / rank)
    probe = replace(probe, gain=gain)
    if keep_prob is None:
        return probe
    if counts is None:
        value = gain.value / keep_prob.value
        relative = math.hypot(
            gain.standard_error / gain.value, keep_prob.standard_error / keep_prob.value
        )
        factor = Estimate(value, value * relative)
    else:
        factor = _ratio(scaled_counts, counts.double())
        nonempty = counts > 0
        spread = _spread(scaled_counts[nonempty])
        if spread < 0.5 * min(
            _spread(scaled_counts[nonempty] / counts[nonempty]), _spread(counts[nonempty])
        ):
            return replace(probe, rescale="mask_mean")
    inverse, none = not gain.differs_from(1.0), not factor.differs_from(1.0)
    if inverse == none:
        probe = _doubt(probe, "the rescale is neither 1 nor 1 / keep_prob, or both fit")
    else:
        probe = replace(probe, rescale="inverse_keep_prob" if inverse else "none")
    return replace(probe, rescale_factor=factor)


def _ratio(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Ratio of sums, with its standard error over the first axis (delta method)."""
    above, below = (part.flatten(1).sum(1) for part in (numerator, denominator))
    value = above.sum() / below.sum()
    error = (above - value * below).std() * math.sqrt(len(above)) / below.sum()
    return Estimate(float(value), float(error))


def _mean(samples: Tensor) -> Estimate:
    return _ratio(samples, torch.ones_like(samples))


def _spread(samples: Tensor) -> float:
    samples = samples.double()
    return float(samples.std() / samples.mean())


def _doubt(probe: MaskProbe, reason: str) -> MaskProbe:
    return replace(probe, doubts=(*probe.doubts, reason))
