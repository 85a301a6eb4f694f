"""Temperatures, calibration errors and Brier scores against plain formulas and planted truths."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from subspace_lab.calibration import (
    BINS,
    TEMPERATURES,
    Calibration,
    Reliability,
    best_temperature,
    loss_at,
    nats_at_temperatures,
)

ONE = TEMPERATURES.index(1.0)


def drawn(tokens: int, classes: int, *, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw logits, and targets by their probabilities: the logits are calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(tokens, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return logits, targets


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_losses_at_all_temperatures_are_cross_entropies(shift: float) -> None:
    logits, targets = drawn(50, 200, spread=8.0)
    nats = nats_at_temperatures(logits + shift, targets)
    assert nats.shape == (50, len(TEMPERATURES))
    for place, temperature in enumerate(TEMPERATURES):
        expected = cross_entropy((logits + shift).double() / temperature, targets, reduction="none")
        torch.testing.assert_close(nats[:, place].double(), expected, rtol=2e-5, atol=2e-5)


def test_temperature_one_and_other_dtypes() -> None:
    logits, targets = drawn(20, 30)
    truth = cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(nats_at_temperatures(logits, targets)[:, ONE], truth)
    rounded = nats_at_temperatures(logits.bfloat16(), targets)
    assert rounded.dtype == torch.float32
    assert nats_at_temperatures(logits.double(), targets).dtype == torch.float64


@pytest.mark.parametrize("place", [4, ONE, 30])
def test_a_planted_temperature_is_found(place: int) -> None:
    logits, targets = drawn(20_000, 10)
    sharpened = logits * TEMPERATURES[place]
    nats = nats_at_temperatures(sharpened, targets)
    assert abs(best_temperature(nats) - place) <= 1
    assert best_temperature(nats.reshape(100, 200, -1).sum(1)) == best_temperature(nats)
    tokens = torch.full((100,), 200.0, dtype=torch.float64)
    by_example = nats.double().reshape(100, 200, -1).sum(1)
    truth = float(cross_entropy(sharpened.double() / TEMPERATURES[3], targets))
    assert loss_at(3, by_example, tokens) == pytest.approx(truth, rel=1e-5)


def test_the_edges_of_the_temperatures_are_chosen_where_the_loss_falls_towards_them() -> None:
    logits, targets = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    assert best_temperature(nats_at_temperatures(logits, targets)) == 0
    assert best_temperature(nats_at_temperatures(logits, 1 - targets)) == len(TEMPERATURES) - 1


def by_hand(probabilities: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Compute calibration error and Brier score, prediction by prediction."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    squares = 0.0
    for p, target in zip(probabilities.double().tolist(), targets.tolist(), strict=True):
        confidence = max(p)
        (low,) = (k for k in range(BINS) if k / BINS < confidence <= (k + 1) / BINS)
        bins.setdefault(low, []).append((confidence, p.index(confidence) == target))
        squares += sum((value - (c == target)) ** 2 for c, value in enumerate(p))
    error = sum(
        abs(sum(right for _, right in members) - sum(confidence for confidence, _ in members))
        for members in bins.values()
    )
    return error / len(targets), squares / len(targets)


def test_calibration_error_and_brier_score_equal_plain_sums() -> None:
    logits, targets = drawn(400, 5)
    log_probabilities = (1.7 * logits).double().log_softmax(-1)
    scores = Reliability()
    for part in (slice(0, 130), slice(130, 131), slice(131, 400)):
        scores.add(log_probabilities[part], targets[part])
    error, brier = by_hand(log_probabilities.exp(), targets)
    assert scores.ece == pytest.approx(error, rel=1e-9) and scores.ece > 0.03
    assert scores.brier == pytest.approx(brier, rel=1e-9)
    matrix = (log_probabilities.exp() - one_hot(targets, 5)).square().sum(-1).mean()
    assert scores.brier == pytest.approx(float(matrix))


def test_a_calibrated_model_has_no_calibration_error_and_an_overconfident_one_has() -> None:
    logits, targets = drawn(100_000, 4)
    usual, sharpened = Reliability(), Reliability()
    usual.add(logits.log_softmax(-1), targets)
    sharpened.add((3 * logits).log_softmax(-1), targets)
    assert usual.ece < 0.01 < 0.1 < sharpened.ece
    assert usual.brier < sharpened.brier


def test_a_planted_calibration_error_is_found() -> None:
    """Of confidence 0.8 and an accuracy of 0.5, and of 0.6 and 0.7: errors do not cancel."""
    first = torch.tensor([0.8, 0.2]).log().expand(100, 2)
    second = torch.tensor([0.4, 0.6]).log().expand(300, 2)
    targets = torch.tensor([0] * 50 + [1] * 50 + [1] * 210 + [0] * 90)
    scores = Reliability()
    scores.add(torch.cat([first, second]), targets)
    assert scores.ece == pytest.approx((100 * 0.3 + 300 * 0.1) / 400)


def test_certain_predictions_are_in_the_last_bin_and_flat_ones_in_theirs() -> None:
    scores = Reliability()
    scores.add(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))
    scores.add(torch.zeros(1, 16).log_softmax(-1), torch.tensor([3]))
    assert scores.bins[-1, 0] == scores.bins[0, 0] == 1
    assert scores.brier == pytest.approx((0 + 1 - 1 / 16) / 2)


def test_scores_at_a_chosen_temperature_are_those_of_softened_predictions() -> None:
    logits, targets = drawn(400, 5)
    place = TEMPERATURES.index(2.0)
    scores, softened = Calibration(place=place), Reliability()
    scores.add((3 * logits).log_softmax(-1), targets)
    softened.add((1.5 * logits).log_softmax(-1), targets)
    summary = scores.summary()
    assert summary["temperature"] == 2
    assert summary["calibrated_ece"] == pytest.approx(softened.ece, rel=1e-5)
    assert summary["calibrated_brier"] == pytest.approx(softened.brier, rel=1e-5)
    assert summary["calibrated_loss"] == pytest.approx(float(cross_entropy(1.5 * logits, targets)))
    assert "temperature" not in Calibration().summary()
