"""Every function of linalg gives on the device what it gives on the processor."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from subspace_lab import linalg

WITHOUT_TENSORS = {"random_angle_moments", "jacobi_edge", "null_overlap", "random_subspace"}


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    masks = torch.rand(9, 6, generator=generator) < 0.6
    masks[0] = True
    return {
        "B": normal(3, 60, 6),
        "A": normal(3, 6, 50),
        "B2": normal(3, 60, 4),
        "A2": normal(3, 4, 50),
        "W": normal(60, 50) + 5 * normal(60, 1) @ normal(1, 50),
        "masks": masks,
        "angles": torch.rand(3, 5, generator=generator, dtype=torch.float64),
    }


def product(svd: linalg.LowRankSVD) -> list[Tensor]:
    """What does not depend on the signs of the singular vectors."""
    return [(svd.U * svd.S[..., None, :]) @ svd.Vh, svd.S, svd.numerical_rank]


def vectors(found: linalg.PrincipalVectors) -> list[Tensor]:
    return [found.angles, found.X @ found.X.mT, found.Y @ found.Y.mT]


Case = Callable[..., Any]
CASES: dict[str, Case] = {
    "triangular_factor": lambda B, **_: linalg.triangular_factor(B),
    "update_core": lambda B, A, masks, **_: linalg.update_core(B, A, mask=masks[:3], scaling=2.0),
    "singular_values": lambda B, A, masks, **_: linalg.singular_values(B, A, mask=masks[:3]),
    "singular_vectors": lambda B, A, **_: product(linalg.singular_vectors(B, A)),
    "frobenius_norm": lambda B, A, masks, **_: linalg.frobenius_norm(B, A, mask=masks[:3]),
    "inner_product": lambda B, A, B2, A2, **_: linalg.inner_product(B, A, B2, A2),
    "effective_rank": lambda angles, **_: [
        linalg.effective_rank(angles, measure=measure) for measure in get_args(linalg.Measure)
    ],
    "nuclear_norm": lambda angles, **_: linalg.nuclear_norm(angles),
    "principal_angles": lambda B, B2, **_: linalg.principal_angles(B, B2),
    "masked_angles": lambda B, masks, **_: [
        linalg.masked_angles(B[0], masks[:-1], masks[1:]),
        linalg.masked_angles(B[0], masks[:-1], masks[1:], Y=B[1]),
        linalg.masked_angles(B[0, :, [0, 1, 2, 0, 3, 4]], masks[:-1], masks[1:]),
    ],
    "chordal_distance": lambda angles, **_: linalg.chordal_distance(angles),
    "geodesic_distance": lambda angles, **_: linalg.geodesic_distance(angles),
    "overlap": lambda B, B2, **_: linalg.overlap(B, B2),
    "grassmann_overlap": lambda B, B2, **_: linalg.grassmann_overlap(
        torch.linalg.qr(B.double()).Q, torch.linalg.qr(B2.double()).Q
    ),
    "pairwise_overlap": lambda B, masks, **_: linalg.pairwise_overlap(B[0], masks),
    "principal_vectors": lambda B, B2, **_: vectors(linalg.principal_vectors(B[0], B2[0])),
    "amplification": lambda W, B, A, **_: linalg.amplification(W, B[0], A[0]),
    "base_projection": lambda W, B, A, **_: dataclasses.astuple(
        linalg.base_projection(linalg.base_svd(W), B[0], A[0])
    )[1:],  # the coefficients have the signs of the singular vectors
    "intruder_dimensions": lambda W, B, A, **_: linalg.intruder_dimensions(W, B[0], A[0]),
    "merged_svd": lambda W, B, A, **_: product(linalg.merged_svd(W, B[0], A[0], rank=5)),
    "base_svd": lambda W, **_: product(linalg.base_svd(W)),
}


def tensors(found: Any) -> list[Tensor]:
    """The numbers of a result, one tensor after another; residuals are rounding and left out."""
    if dataclasses.is_dataclass(found):
        fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        return [x for name, value in fields.items() if name != "residual" for x in tensors(value)]
    if isinstance(found, list | tuple):
        return [x for value in found for x in tensors(value)]
    return [torch.as_tensor(found)]


def test_every_function_is_here() -> None:
    functions = {n for n in linalg.__all__ if inspect.isfunction(getattr(linalg, n))}
    assert functions - WITHOUT_TENSORS == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_function_equals_its_twin_on_the_processor(name, device) -> None:
    here, there = inputs(), {key: value.to(device) for key, value in inputs().items()}
    expected, found = tensors(CASES[name](**here)), tensors(CASES[name](**there))
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        # A residual may be put on the host as a number; a tensor stays where its inputs are.
        assert other.device.type == device.type or other.dim() == 0
        torch.testing.assert_close(other.cpu(), one, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("shape", [(512, 32), (4096, 16)])
def test_batched_cholesky_qr_at_conditions_from_1_to_1e12(shape, device) -> None:
    """R^T R = X^T X column by column, and R's singular values are X's, in one batch."""
    n, k = shape
    exponents = torch.arange(13, dtype=torch.float64)
    spectra = 10 ** -(exponents[:, None] * torch.linspace(0, 1, k, dtype=torch.float64))
    torch.manual_seed(0)
    U = linalg.random_subspace(n, k, batch=(13,))
    V = linalg.random_subspace(k, k, batch=(13,))
    X = (U * spectra[:, None, :]) @ V.mT
    R = linalg.triangular_factor(X.to(device), algorithm="cholesky").cpu()
    lengths = X.norm(dim=-2)
    bound = 40 * 2.2e-16 * lengths[..., :, None] * lengths[..., None, :]
    assert ((R.mT @ R - X.mT @ X).abs() <= bound).all()
    assert torch.equal(R, R.triu())
    assert (torch.linalg.svdvals(R) - spectra).abs().max() < 40 * 2.2e-16


def test_on_a_gpu_the_factor_is_made_of_matrix_products(device) -> None:
    X = inputs()["B"].to(device)
    algorithm = "cholesky" if device.type == "cuda" else "householder"
    chosen = linalg.triangular_factor(X)
    assert torch.equal(chosen, linalg.triangular_factor(X, algorithm=algorithm))
