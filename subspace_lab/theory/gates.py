"""What random gates do to any smooth loss: the expansion of its mean over masks.

A closure `loss(*gates)` maps gates (one tensor per layer, of any shape, e.g. (r,) for one mask per
step, (batch, seq, r) for one per token) to a scalar. Masked gates are s d, d ~ Bernoulli(q)
independently, with mean g0 = s q. With z = s (d - q), Taylor's theorem about g0 gives

    E L(s d) = L(g0) + (mu2/2) sum_i L_ii
                     + (mu3/6) sum_i L_iii
                     + (mu4/24) sum_i L_iiii + (mu2^2/8) sum_{i != j} L_iijj + ...,

    mu2 = s^2 q (1-q),  mu3 = s^3 q (1-q) (1-2q),  mu4 = s^4 q (1-q) (1 - 3q (1-q)),

mu2 = (1-q)/q at s = 1/q; the third order is 0 at q = 1/2. The second order is the regularizer of
dropout (Wager, Wang, Liang 2013; Wei, Kakade, Ma 2020); its Gauss-Newton part is that of the
network linearised in its gates. Step and token gates give different traces where tokens mix after
the gate (attention), the cross-token terms of the Hessian. Gates that are drawn together, as those
of exact-k masks, add pairs to the second order: `correlated_gates`.

The closure must be deterministic, and differentiable as often as the order asks: fused attention
has no second derivative, so a transformers model is loaded with attn_implementation="eager".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.enumeration import all_masks, mask_probabilities

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class GateTrace:
    """The trace of a Hessian over the gates, in all and per layer."""

    total: float
    standard_error: float  # 0 where every gate was probed
    per_layer: Float[Tensor, " layers"]  # sums to total
    per_layer_standard_error: Float[Tensor, " layers"]
    probes: int


@dataclass(frozen=True)
class GateGap:
    """E L(s d) - L(s q), measured, beside the orders of its expansion under the same masks.

    Attributes:
        samples: of each mask (at q = 1/2 with its complement): its gap without the first order,
            then its second, third and fourth order.
        weights: probabilities of the masks; they sum to 1.
        enumerated: whether the masks are all that there are, so that nothing is left to chance.
        tolerance: relative, of `trustworthy`.
    """

    samples: Float64[Tensor, "masks 4"]
    weights: Float64[Tensor, " masks"]
    enumerated: bool
    tolerance: float

    @property
    def measured(self) -> float:
        """The gap."""
        return float(self.weights @ self.samples[:, 0])

    @property
    def measured_standard_error(self) -> float:
        """Standard error of the gap over masks."""
        return float(self._standard_error(self.samples[:, 0]))

    @property
    def orders(self) -> Float64[Tensor, " 3"]:
        """Second, third and fourth order."""
        return self.weights @ self.samples[:, 1:]

    @property
    def orders_standard_error(self) -> Float64[Tensor, " 3"]:
        """Standard errors of the orders."""
        return self._standard_error(self.samples[:, 1:])

    @property
    def excess_standard_error(self) -> float:
        """Standard error of measured - second, from the paired differences."""
        return float(self._standard_error(self.samples[:, 0] - self.samples[:, 1]))

    @property
    def second_order(self) -> float:
        """The prediction (mu2/2) tr H."""
        return float(self.orders[0])

    @property
    def trustworthy(self) -> bool:
        """Whether the second order alone may stand for the gap, within `tolerance` of itself.

        True iff |measured - second| plus two standard errors, |third| and |fourth| are each at most
        tolerance |second|. Off whenever the evidence is too weak to tell. In a cross-entropy model
        that interpolates its data the second order vanishes with the residuals while a mask still
        breaks the fit, so that it under-predicts by far, and this is off.
        """
        second, third, fourth = self.orders.abs().tolist()
        excess = abs(self.measured - self.second_order) + 2 * self.excess_standard_error
        return bool(max(excess, third, fourth) <= self.tolerance * second)

    def _standard_error(self, values: Float64[Tensor, "masks ..."]) -> Tensor:
        """Standard error of the mean over masks (...)."""
        error: Tensor = values.std(0) / len(values) ** 0.5
        return torch.zeros_like(error) if self.enumerated else error


def average_gap(gaps: Sequence[GateGap], weights: Sequence[float | int]) -> GateGap:
    """Gap of a loss that is the weighted mean of several, such as batches by their tokens.

    Args:
        gaps: of each loss, all of as many masks.
        weights: of the losses, of any sum.

    Raises:
        ValueError: no gaps, or different numbers of masks.
    """
    if len({len(gap.samples) for gap in gaps}) != 1:
        raise ValueError("gaps can be averaged only over the same number of masks")
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    samples = torch.stack([gap.samples for gap in gaps])
    return replace(gaps[0], samples=(shares[:, None, None] * samples).sum(0))


def gate_trace(
    loss: Loss,
    gates: Sequence[Tensor],
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GateTrace:
    """Tr H of H = d^2 loss / dg^2 at `gates`, by Hessian-vector products.

    Rademacher probes e over all gates at once: E e^T H e = tr H (Hutchinson 1990), with variance
    2 sum_{i != j} H_ij^2 a probe. Layer l's share of a probe, e_l^T (H e)_l, is unbiased for
    tr H_ll, so all layers come from the same products.

    Args:
        loss: closure from the gates to a scalar.
        gates: one tensor per layer, the point of expansion; `mean_gates` makes it.
        probes: number of probes, at least 2; None takes each gate in turn and is exact.
        generator: source of the probes, on the CPU.

    Raises:
        ValueError: fewer than two probes.

    >>> g = torch.ones(3, dtype=torch.float64)
    >>> gate_trace(lambda g: (g**3).sum(), [g]).total
    18.0
    """

    def product(probe: list[Tensor]) -> list[Tensor]:
        point = [gate.detach().requires_grad_() for gate in gates]
        gradient = _gradient(loss(*point), point, create_graph=True)
        return _gradient(_inner(gradient, probe), point)

    return _hutchinson(product, gates, probes, generator)


def gauss_newton_trace(
    outputs: Callable[..., Tensor],
    output_loss: Callable[[Tensor], Tensor],
    gates: Sequence[Tensor],
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GateTrace:
    """The Gauss-Newton part of tr H: sum_i J_i^T H_out J_i, J_i = d outputs / d g_i.

    H_out is the Hessian of `output_loss` at the outputs; the trace is non-negative where that loss
    is convex, while tr H itself can be negative away from a fit. For a mean cross-entropy over N
    tokens it is N^{-1} sum_t sum_i Var_{p_t}(J_ti), free of labels. The other part of tr H is
    sum_i <grad output_loss, d^2 outputs / d g_i^2>, zero where outputs are linear in the gates.

    Args:
        outputs: closure from the gates to the outputs (logits), of any shape.
        output_loss: convex loss of the outputs; output_loss(outputs(*gates)) is the loss.
        gates: as in `gate_trace`.
        probes: as in `gate_trace`.
        generator: as in `gate_trace`.
    """

    def product(probe: list[Tensor]) -> list[Tensor]:
        point = [gate.detach().requires_grad_() for gate in gates]
        out = outputs(*point)
        # J e, as the derivative of J^T w with respect to w: twice reverse, no forward mode needed.
        w = torch.zeros_like(out).requires_grad_()
        pulled = _gradient((out * w).sum(), point, create_graph=True)
        (pushed,) = _gradient(_inner(pulled, probe), [w])
        at = out.detach().requires_grad_()
        (slope,) = _gradient(output_loss(at), [at], create_graph=True)
        (curved,) = _gradient((slope * pushed).sum(), [at])
        return _gradient((out * curved).sum(), point)

    return _hutchinson(product, gates, probes, generator)


def mean_gates(gates: Sequence[Tensor], *, keep_prob: float, rescale: float) -> list[Tensor]:
    """The gates' mean s q, in the shapes of `gates`: all ones where rescale = 1 / keep_prob."""
    check_keep_prob(keep_prob)
    return [torch.full_like(gate, keep_prob * rescale) for gate in gates]


def gate_moments(*, keep_prob: float, rescale: float) -> tuple[float, float, float]:
    """Central moments (mu2, mu3, mu4) of a gate s d.

    >>> gate_moments(keep_prob=0.5, rescale=2.0)
    (1.0, 0.0, 1.0)
    """
    check_keep_prob(keep_prob)
    s, q = rescale, keep_prob
    v = q * (1 - q)
    return s**2 * v, s**3 * v * (1 - 2 * q), s**4 * v * (1 - 3 * v)


def gate_gap(
    loss: Loss,
    gates: Sequence[Tensor],
    *,
    keep_prob: float,
    rescale: float,
    masks: int | None = None,
    tolerance: float = 0.2,
    generator: torch.Generator | None = None,
) -> GateGap:
    """E L(s d) - L(s q) over Bernoulli masks, and the orders 2, 3, 4 of its expansion.

    The order k is E (1/k!) d^k/dt^k L(s q + t z) at t = 0, z = s (d - q), over the same masks as
    the measured gap: unbiased for every q, so the difference is known better than the gap itself.
    The first order has mean zero, but most of the variance, and is taken off each mask's gap. At
    q = 1/2 the complement of a mask has the same law, z turned to -z, and a sample is the mean of
    both: all odd orders cancel (antithetic variates, Hammersley and Morton 1956). (For the second
    order alone `gate_trace` has the smaller variance elsewhere.)

    Args:
        loss: closure from the gates to a scalar, four times differentiable.
        gates: tensors whose shapes and dtypes the masks take; their values are not used.
        keep_prob: q.
        rescale: s.
        masks: number of random masks, or pairs of them at q = 1/2, at least 2; None enumerates all
            2^gates exactly.
        tolerance: of `GateGap.trustworthy`.
        generator: source of the masks, on the CPU.

    Raises:
        ValueError: keep_prob outside (0, 1], fewer than two masks, or too many gates to enumerate.
    """
    point = mean_gates(gates, keep_prob=keep_prob, rescale=rescale)
    size = sum(gate.numel() for gate in gates)
    if masks is None:
        drawn = all_masks(size)
        weights = mask_probabilities(drawn, keep_prob=keep_prob)
    else:
        _check_at_least_two(masks, "masks")
        drawn = torch.rand(masks, size, generator=generator) < keep_prob
        weights = torch.full((masks,), 1 / masks, dtype=torch.float64)
    signs = (1, -1) if keep_prob == 0.5 else (1,)
    odd = sum(signs) / len(signs)
    start = loss(*point).item()
    samples = torch.empty(len(drawn), 4, dtype=torch.float64)
    for row, mask in zip(samples, drawn, strict=True):
        step = [rescale * (d - keep_prob) for d in _split(mask, gates)]
        first, second, third, fourth = _directional_derivatives(loss, point, step)
        masked = [
            loss(*(g + sign * z for g, z in zip(point, step, strict=True))).item() for sign in signs
        ]
        gap = sum(masked) / len(masked) - start - odd * first
        row[:] = torch.tensor([gap, second / 2, odd * third / 6, fourth / 24], dtype=torch.float64)
    return GateGap(samples, weights, masks is None, tolerance)


def _directional_derivatives(
    loss: Loss, point: Sequence[Tensor], step: Sequence[Tensor]
) -> list[float]:
    """First to fourth derivative of t -> loss(point + t step) at 0."""
    t = torch.zeros((), dtype=point[0].dtype, device=point[0].device, requires_grad=True)
    value = loss(*(g + t * z for g, z in zip(point, step, strict=True)))
    derivatives = []
    for order in range(1, 5):
        (value,) = _gradient(value, [t], create_graph=order < 4)
        derivatives.append(value.item())
    return derivatives


def _gradient(
    value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """Gradient of a scalar, zero for inputs (or a value) that nothing connects."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(
        torch.autograd.grad(value, inputs, create_graph=create_graph, materialize_grads=True)
    )


def _hutchinson(
    product: Callable[[list[Tensor]], list[Tensor]],
    gates: Sequence[Tensor],
    probes: int | None,
    generator: torch.Generator | None,
) -> GateTrace:
    """Trace of the linear map `product` by Rademacher probes, or exactly by unit vectors."""
    size = sum(gate.numel() for gate in gates)
    if probes is not None:
        _check_at_least_two(probes, "probes")
    rows = torch.empty(size if probes is None else probes, len(gates), dtype=torch.float64)
    for index, row in enumerate(rows):
        if probes is None:
            flat = torch.zeros(size)
            flat[index] = 1
        else:
            flat = 2.0 * torch.randint(2, (size,), generator=generator) - 1
        probe = _split(flat, gates)
        for layer, (e, He) in enumerate(zip(probe, product(probe), strict=True)):
            row[layer] = (e * He).sum()
    if probes is None:
        per_layer, total_error, layer_error = rows.sum(0), 0.0, rows.new_zeros(len(gates))
    else:
        per_layer = rows.mean(0)
        total_error = rows.sum(1).std().item() / probes**0.5
        layer_error = rows.std(0) / probes**0.5
    return GateTrace(per_layer.sum().item(), total_error, per_layer, layer_error, len(rows))


def _inner(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()


def _split(flat: Tensor, gates: Sequence[Tensor]) -> list[Tensor]:
    """Cut a flat vector into tensors of the gates' shapes, dtypes and devices."""
    parts = torch.split(flat, [gate.numel() for gate in gates])
    return [part.reshape(gate.shape).to(gate) for part, gate in zip(parts, gates, strict=True)]


def _check_at_least_two(number: int, what: str) -> None:
    if number < 2:
        raise ValueError(f"a standard error needs at least 2 {what}, not {number}")
