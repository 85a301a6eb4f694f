"""Scores under teacher forcing, against a loop over responses in float64."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.teacher_forcing import log_probabilities, score_responses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_those_of_a_loop_over_responses(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 1, 0, 5)  # one has no token at all
    responses = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    logits = torch.randn(9, 7, generator=generator).to(dtype)
    targets = logits.argmax(-1)
    targets[[1, 6, 7]] = (targets[[1, 6, 7]] + 1) % 7  # departures of the first and the last

    scores = score_responses(log_probabilities(logits), targets, responses, count=4)

    exact = logits.double().log_softmax(-1)
    for i in range(4):
        places = [k for k in range(9) if responses[k] == i]
        nats = -sum(float(exact[k, targets[k]]) for k in places)
        assert float(scores.nats[i]) == pytest.approx(
            nats, rel=1e-6 if dtype != torch.float64 else 1e-14
        )
    assert scores.tokens.tolist() == list(lengths)
    assert scores.matched.tolist() == [1, 1, 0, 2]
    assert scores.exact.tolist() == [False, True, True, False]
