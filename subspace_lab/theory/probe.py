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

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subspace_lab.theory.probe_statistics import (
    DECISION,
    JACKKNIFE_GROUPS,
    Estimate,
    fit_token_masks,
    mean_of,
    ratio_of_sums,
    relative_spread,
)

Layer = Callable[[Tensor], Tensor]


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
        keep_prob=mean_of(counts / rank),
        input_keep_prob=float(outputs.alive[counts > 0].double().mean()),
    )
    return _rescale(outputs, probe, counts=counts)


def _sharing(centred: Tensor, alive: Tensor, *, chained: bool) -> MaskProbe:
    """Decide which outputs share a mask, from the correlations between them."""

    def correlation(first: Tensor, second: Tensor, both: Tensor) -> Estimate:
        weight = both[..., None]
        return ratio_of_sums(first * second * weight, (first**2 + second**2) / 2 * weight)

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
    fit = fit_token_masks(outputs.values, outputs.alive)
    if fit is None:
        return _doubt(
            probe,
            "the number of kept directions is not binomial: dependent factors, an exact-k mask, "
            "a rescale by the mask's mean, or the base layer's output",
        )
    return replace(probe, keep_prob=fit.keep_prob, input_keep_prob=fit.input_keep_prob)


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
    gain = mean_of(scaled_counts / rank)
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
        factor = ratio_of_sums(scaled_counts, counts.double())
        nonempty = counts > 0
        spread = relative_spread(scaled_counts[nonempty])
        if spread < 0.5 * min(
            relative_spread(scaled_counts[nonempty] / counts[nonempty]),
            relative_spread(counts[nonempty]),
        ):
            return replace(probe, rescale="mask_mean")
    inverse, none = not gain.differs_from(1.0), not factor.differs_from(1.0)
    if inverse == none:
        probe = _doubt(probe, "the rescale is neither 1 nor 1 / keep_prob, or both fit")
    else:
        probe = replace(probe, rescale="inverse_keep_prob" if inverse else "none")
    return replace(probe, rescale_factor=factor)


def _doubt(probe: MaskProbe, reason: str) -> MaskProbe:
    return replace(probe, doubts=(*probe.doubts, reason))
