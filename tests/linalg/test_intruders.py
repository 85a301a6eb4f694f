"""Intruder dimensions on planted updates, and against PEFT's own detection."""

from __future__ import annotations

import re

import pytest
import torch

from subspace_lab.linalg import base_svd, intruder_dimensions, random_subspace

EPSILON = 0.5


def planted(m: int = 40, n: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W0 = U diag(30, 29, ..., 1) V^T, so that W0's left vectors do not fill R^m."""
    U, V = random_subspace(m, n), random_subspace(n, n)
    S = torch.arange(n, 0, -1, dtype=torch.float64)
    return (U * S) @ V.T, U, V


def test_a_new_direction_is_an_intruder_and_an_old_one_is_not():
    W0, U, V = planted()
    new = torch.randn(40, dtype=torch.float64)
    new = new - U @ (U.T @ new)
    B = torch.stack([new / new.norm(), U[:, 4]], dim=1)
    A = 20.0 * torch.stack([V[:, 3], V[:, 4]])
    result = intruder_dimensions(W0, B, A, top_k=5)
    # W0 + dW has U_5 at 26 + 20, and u_4 at (27, 20 new): one vector at cosine 27/33.6 to u_4.
    assert result.singular_values[0].item() == pytest.approx(46)
    assert result.singular_values[1].item() == pytest.approx((27**2 + 20**2) ** 0.5)
    assert result.max_cosine[:2].tolist() == pytest.approx([1, 27 / (27**2 + 20**2) ** 0.5])
    assert not result.intruder.any()
    result = intruder_dimensions(W0, B, A, scaling=3.0, top_k=5)
    assert result.intruder.tolist() == [False, True, False, False, False]
    assert result.max_cosine[1].item() == pytest.approx(27 / (27**2 + 60**2) ** 0.5)
    masked = intruder_dimensions(W0, B, A, scaling=3.0, mask=torch.tensor([False, True]))
    assert not masked.intruder.any()


def test_part_of_the_base_decides_what_it_can():
    W0 = torch.randn(50, 50, dtype=torch.float64) / 7
    B, A = torch.randn(50, 3, dtype=torch.float64), torch.randn(3, 50, dtype=torch.float64)
    full = intruder_dimensions(W0, B, A, scaling=0.12)
    assert 0 < full.intruder.sum() < 10
    assert not full.undecided.any()
    for rank in (5, 20, 45):
        part = intruder_dimensions(W0, B, A, scaling=0.12, base=base_svd(W0, rank=rank))
        unseen = torch.maximum(part.max_cosine, part.unseen_cosine)
        assert (part.max_cosine <= full.max_cosine + 1e-9).all()
        assert (full.max_cosine <= unseen + 1e-9).all()
        assert (part.intruder <= full.intruder).all()
        assert (full.intruder <= (part.intruder | part.undecided)).all()


def test_rows_that_dora_scales():
    W0, _, _ = planted()
    B, A = torch.randn(40, 3, dtype=torch.float64), torch.randn(3, 30, dtype=torch.float64)
    c = torch.rand(40, dtype=torch.float64) + 0.5
    found = intruder_dimensions(W0, B, A, scaling=2.0, row_scaling=c, top_k=4)
    U, S, _ = torch.linalg.svd(torch.diag(c) @ (W0 + 2.0 * B @ A))
    torch.testing.assert_close(found.singular_values, S[:4])
    cosines = (U[:, :4].T @ torch.linalg.svd(W0)[0][:, :30]).abs().max(-1).values
    torch.testing.assert_close(found.max_cosine, cosines)


def by_brute_force(
    W0: torch.Tensor, update: torch.Tensor, top_k: int
) -> tuple[list[float], list[bool]]:
    """Cosines with clusters of base vectors, and intruders, from dense decompositions and loops."""
    U0, S0, _ = torch.linalg.svd(W0)
    U, S, _ = torch.linalg.svd(W0 + update)
    clusters: list[list[int]] = []
    for i, value in enumerate(S0.tolist()):
        if value <= 1e-13 * S0[0]:
            break
        if clusters and S0[i - 1] - value <= 1e-5 * S0[i - 1]:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    size = W0.norm() + update.norm()
    leading = [U[:, j] for j in range(top_k) if S[j] > 1e-13 * size]
    cosines = [
        max((float((U0[:, c].T @ u).norm()) for c in clusters), default=0.0) for u in leading
    ]
    return cosines, [cosine < EPSILON for cosine in cosines]


def base_with(spectrum: torch.Tensor) -> torch.Tensor:
    n = len(spectrum)
    return (random_subspace(n, n) * spectrum.double()) @ random_subspace(n, n).T


N = 60
DEGENERATE = {
    "multiple of the identity": 3 * torch.eye(N, dtype=torch.float64),
    "zero": torch.zeros(N, N, dtype=torch.float64),
    "isometry": torch.ones(N),
    "nearly an isometry": 3 + 1e-6 * torch.arange(N).flip(0),
    "two levels": torch.cat([torch.full((20,), 3.0), torch.full((N - 20,), 1.0)]),
    "rank three": torch.tensor([5.0, 4.0, 3.0] + [0.0] * (N - 3)),
    "a cluster at the top": torch.cat([torch.full((8,), 3.0), torch.linspace(2.5, 0.1, N - 8)]),
    "none": torch.linspace(3, 0.1, N),
}


@pytest.mark.parametrize("size", [0.0, 0.01, 20.0])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_weights_against_brute_force(kind, size):
    W0 = DEGENERATE[kind]
    W0 = base_with(W0) if W0.ndim == 1 else W0
    B = size * random_subspace(N, 3)
    A = torch.tensor([[1.0], [0.9], [0.8]], dtype=torch.float64) * random_subspace(N, 3).T
    found = intruder_dimensions(W0, B, A)
    cosines, intruders = by_brute_force(W0, B @ A, 10)
    count = len(cosines)
    assert found.max_cosine[:count].tolist() == pytest.approx(cosines, abs=1e-7)
    assert found.max_cosine[count:].isnan().all()
    assert found.intruder.tolist() == intruders + [False] * (10 - count)
    assert not found.undecided.any()


@pytest.mark.parametrize(
    "kind", ["multiple of the identity", "isometry", "nearly an isometry", "zero"]
)
def test_an_update_within_a_cluster_makes_no_intruders(kind):
    """All directions are singular vectors of such a base; zero has none."""
    W0 = DEGENERATE[kind]
    W0 = base_with(W0) if W0.ndim == 1 else W0
    size = 0.0 if kind == "zero" else 0.01
    B, A = size * random_subspace(N, 3), random_subspace(N, 3).T
    assert not intruder_dimensions(W0, B, A).intruder.any()


def test_every_direction_of_an_update_to_zero_is_new():
    found = intruder_dimensions(torch.zeros(N, N), random_subspace(N, 3), random_subspace(N, 3).T)
    assert found.intruder.tolist() == [True] * 3 + [False] * 7


def test_part_of_the_base_may_cut_a_cluster():
    """A cluster of 20, of which 12 are given: what it holds may go on, so nothing is decided."""
    W0 = base_with(DEGENERATE["two levels"])
    B, A = 0.01 * random_subspace(N, 3), random_subspace(N, 3).T
    part = intruder_dimensions(W0, B, A, base=base_svd(W0, rank=12), top_k=10)
    assert not part.intruder.any()
    assert (part.unseen_cosine[:10] > 0.9).all()


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0])
def test_detection_of_peft(scale):
    peft = pytest.importorskip("peft")
    intruders = pytest.importorskip("peft.tuners.lora.intruders")
    linear = torch.nn.Linear(64, 48, dtype=torch.float64)
    config = peft.LoraConfig(r=8, lora_alpha=4, target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(linear), config)
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data = torch.randn(8, 64, dtype=torch.float64)
    layer.lora_B["default"].weight.data = scale * torch.randn(48, 8, dtype=torch.float64) / 8
    ours = intruder_dimensions(
        layer.get_base_layer().weight.detach(),
        layer.lora_B["default"].weight.detach(),
        layer.lora_A["default"].weight.detach(),
        scaling=layer.scaling["default"],
        top_k=10,
        epsilon=EPSILON,
    )
    lines: list[str] = []
    intruders.reduce_intruder_dimension(
        model, top_k=10, threshold_epsilon=EPSILON, logging_sink=lines.append
    )
    found = re.search(r"Intruders: (\d+)", lines[0])
    assert int(ours.intruder.sum()) == (int(found[1]) if found else 0)
