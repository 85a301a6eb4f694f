"""The Brier score as the training loss: against its definition, and in a run."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import IGNORED
from subspace_lab.training.loss import brier_loss
from subspace_lab.training.trainer import train


def test_the_score_is_its_definition_over_response_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, IGNORED, 2, 0], [IGNORED, 1, IGNORED, IGNORED]])
    scores = []
    for row, place, right in ((0, 1, 2), (0, 2, 0), (1, 0, 1)):  # the logits before each token
        weights = [math.exp(value) for value in logits[row, place].tolist()]
        p = [weight / sum(weights) for weight in weights]
        scores.append(sum((p[v] - (v == right)) ** 2 for v in range(3)))
    outputs = SimpleNamespace(logits=logits)
    assert brier_loss(outputs, labels).item() == pytest.approx(sum(scores) / 3)
    assert brier_loss(outputs, labels, 12).item() == pytest.approx(sum(scores) / 12)


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 0.5), (40.0, 0.0), (-40.0, 2.0)])
def test_it_is_bounded_and_flat_at_both_ends(logit, expected):
    logits = torch.tensor([[[logit, 0.0], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    score = brier_loss(SimpleNamespace(logits=logits), torch.tensor([[IGNORED, 0]]))
    score.backward()
    assert score.item() == pytest.approx(expected, abs=1e-12)
    slope = logits.grad.abs().max().item()
    assert (slope < 1e-12) if logit else (slope > 0.1)


def test_a_run_descends_it_whatever_the_accumulation_and_reports_nats(base, tmp_path):
    config = TrainConfig(
        base=str(base), base_dtype="fp32", rank=4, train_size=32, eval_size=8, steps=3,
        batch_size=4, accumulation=2, learning_rate=1e-2, training_loss="brier",
    )  # fmt: skip
    train(config, tmp_path / "run")
    train(dataclasses.replace(config, batch_size=8, accumulation=1), tmp_path / "whole")
    train(dataclasses.replace(config, training_loss="cross_entropy"), tmp_path / "usual")
    run, whole, usual = (Run(tmp_path / name) for name in ("run", "whole", "usual"))
    losses = run.metrics["loss"].dropna()
    np.testing.assert_allclose(losses, whole.metrics["loss"].dropna(), rtol=1e-4)
    assert losses.max() <= 2 < usual.metrics["loss"].dropna().min()  # ln 257 at first
    first = [one.metrics["eval_response_loss"].iloc[0] for one in (run, usual)]
    assert first[0] == first[1]
    last = [one.metrics["eval_response_loss"].iloc[-1] for one in (run, usual)]
    assert last[0] != last[1]
