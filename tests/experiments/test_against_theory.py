from types import SimpleNamespace

import pytest
import torch

from experiments.against_theory import _module


def test_the_inputs_weigh_the_directions_of_an_update():
    """A spectrum (3, 1) whose first input has a third of the size is flat to its inputs."""
    module = SimpleNamespace(B=torch.eye(2), A=torch.tensor([3.0, 1.0]).diag())
    row = _module(module, torch.tensor([1 / 9, 1.0], dtype=torch.float64).diag())
    assert row["weighted_entropy"] == pytest.approx(2) and row["entropy"] < 1.8
    assert row["balance"] == pytest.approx(1)
    assert row["product_cv"] == pytest.approx(0.5**0.5)
