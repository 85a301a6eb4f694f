"""Sharpness: Lanczos against dense Hessians, and Hessian-vector products of a pocket model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import sharpness
from analyses.gate_expansion.gated_loss import GatedLoss
from analyses.sharpness.eigenvalues import HessianBlock
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.evaluation.responses import response_batches
from subspace_lab.evaluation.trained_model import evaluation_examples, load_trained
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.analyses.documented import documented


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "step"
    short = {"steps": 3, "train_size": 24, "eval_size": 2, "learning_rate": 1e-2, "rank": 2}
    config = TrainConfig(method="droplora", targets=["q_proj"], cores="light", **short)
    train(config, folder)
    return Run(folder)


def test_lanczos_finds_the_largest_eigenvalue_of_dense_hessians():
    """A loss with interactions of A and B; the third row of A and column of B do not count."""
    generator = torch.Generator().manual_seed(0)
    A, B, X = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 5), (4, 3), (7, 5))
    )

    def loss(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return (X.detach() @ A.T @ B.T).tanh().square().sum() + (B**3).sum()

    dense = torch.autograd.functional.hessian(loss, (A, B))
    kept = [torch.arange(15).view(3, 5)[:2].flatten(), torch.arange(12).view(4, 3)[:, :2].flatten()]
    sizes = [15, 12]
    matrix = torch.cat(
        [
            torch.cat(
                [
                    dense[i][j].reshape(sizes[i], sizes[j])[kept[i]][:, kept[j]]
                    for j in range(2)
                ],
                dim=1,
            )
            for i in range(2)
        ]
    )  # fmt: skip
    eigenvalues = torch.linalg.eigvalsh(matrix)
    gradients = torch.autograd.grad(loss(A, B), (A, B), create_graph=True)
    block = HessianBlock(gradients, (A, B), [(2, 5), (4, 2)])
    largest = block.largest_eigenvalue(seed=0)
    assert block.size == len(matrix) == 18
    assert largest.sharpness == pytest.approx(float(eigenvalues[-1]), rel=1e-4)
    assert largest.residual < 1e-2
    product = block.product(np.eye(18)[3])
    np.testing.assert_allclose(product, matrix[3], atol=1e-10)


def test_a_hessian_of_zero():
    weight = torch.ones(2, 2, requires_grad=True)
    gradients = torch.autograd.grad((0 * weight**2).sum(), (weight,), create_graph=True)
    assert HessianBlock(gradients, (weight,), [(2, 2)]).largest_eigenvalue(seed=0).sharpness == 0


def test_a_negative_largest_eigenvalue_is_not_the_largest_in_size():
    weight = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    curvatures = torch.tensor([[-9.0], [-4.0], [-2.0], [-1.0]], dtype=torch.float64)
    loss = (curvatures * weight.square()).sum() / 2
    gradients = torch.autograd.grad(loss, (weight,), create_graph=True)
    largest = HessianBlock(gradients, (weight,), [(4, 1)]).largest_eigenvalue(seed=0)
    assert largest.sharpness == pytest.approx(-1, rel=1e-3)


def test_products_under_a_mask_are_finite_differences_of_gradients(run):
    """The mask of training, put on the model by its own hooks, and two gradients."""
    examples = evaluation_examples(run)
    law = sharpness.mask_law_of(run, seed=5)
    trained = load_trained(run)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    gates = sharpness.drawn_gates(law, ranks, 0)
    name = next(name for name, gate in zip(ranks, gates, strict=True) if gate.count_nonzero() == 1)
    with GatedLoss(trained, examples, ranks=ranks, granularity="step") as loss:
        module = next(m for m in lora_modules(trained.model) if m.name == name)
        weights = [module.A.requires_grad_(), module.B.requires_grad_()]
        gradients = torch.autograd.grad(loss(*gates), weights, create_graph=True)
        block = HessianBlock(gradients, weights, [tuple(w.shape) for w in weights])
        vector = np.random.default_rng(0).standard_normal(block.size)
        product = block.product(vector)

    trained = load_trained(run)
    trained.model.double()
    with pytest.warns(UserWarning, match="changes the model's function"):
        mask = RankMask(0.5, rescale=True, seed=5).attach(trained.model)
    kept = {name: torch.from_numpy(one) for name, one in mask.masks(1).items()}
    module = next(m for m in lora_modules(trained.model) if m.name == name)
    weights = [module.A.requires_grad_(), module.B.requires_grad_()]
    (batch,) = response_batches(
        trained.tokenizer, [(e.prompt, e.response) for e in examples], batch_size=2,
        device=torch.device("cpu"), description="",
    )  # fmt: skip
    direction = torch.from_numpy(vector).split([w.numel() for w in weights])
    slopes, h = [], 1e-4
    for sign in (-1, 1):
        with torch.no_grad():
            for weight, change in zip(weights, direction, strict=True):
                weight += sign * h * change.view_as(weight)
        with mask.in_evaluation(kept):
            loss = torch.nn.functional.cross_entropy(batch.logits(trained.model), batch.targets)
        found = torch.autograd.grad(loss, weights)
        slopes.append(torch.cat([slope.flatten() for slope in found]))
        with torch.no_grad():
            for weight, change in zip(weights, direction, strict=True):
                weight -= sign * h * change.view_as(weight)
    expected = ((slopes[1] - slopes[0]) / (2 * h)).numpy()
    assert np.linalg.norm(product - expected) < 1e-2 * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 0


def test_table_figure_and_command(run, command, tmp_path):
    q = ["--modules", "*.layers.[01].*", "--examples", "1", "--out", tmp_path]
    done = command("sharpness", "--run", run.path, "--steps", "0,3", *q)
    assert done.code == 0, done.err
    table = pd.read_parquet(tmp_path / "sharpness.parquet")
    assert set(table.columns) == documented("sharpness")
    assert len(table) == 2 * 3 * 2 and set(table["step"]) == {0, 3}
    by_place = table.set_index(["step", "mask", "module"])["sharpness"]
    for of_step in (by_place[step, mask] for step in (0, 3) for mask in ("none", "drawn")):
        # The largest eigenvalue of a matrix is at least that of each diagonal block (Cauchy).
        assert of_step["all"] >= of_step.drop("all").max() * (1 - 1e-3)
    assert (table["residual"] < 0.05).all() and set(table["factor"]) == {2.0}
    assert len(sharpness.ANALYSIS.plots["sharpness"](table).axes) == 2


def test_what_it_refuses(run):
    with pytest.raises(UserError, match="`masks` must be at least 0"):
        sharpness.compute(run, masks=-1)
    with pytest.raises(UserError, match="`examples` must be at least 1"):
        sharpness.compute(run, examples=0)
