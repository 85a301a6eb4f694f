"""Scores of every example under every choice of kept directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int

from analyses.rank_curve.kept_directions import KeptDirections
from analyses.rank_curve.probes import Probe
from subspace_lab import teacher_forcing
from subspace_lab.evaluation.responses import response_batches
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.tasks.examples import Example


@dataclass(frozen=True)
class ProbeScores:
    """Scores by probe and example.

    Attributes:
        nats: -log p(response | prompt).
        exact: whether greedy decoding would write the response.
        tokens: of each response.
    """

    nats: Float64[np.ndarray, "probes examples"]
    exact: Bool[np.ndarray, "probes examples"]
    tokens: Int[np.ndarray, " examples"]


@torch.no_grad()
def score_probes(
    trained: TrainedModel,
    examples: Sequence[Example],
    probes: Sequence[Probe],
    *,
    ranks: Mapping[str, int],
    batch_size: int,
    seed: int,
    description: str,
) -> ProbeScores:
    """Score examples by teacher forcing, one forward pass for each probe and batch.

    Args:
        trained: the model.
        examples: what is predicted.
        probes: which directions are kept.
        ranks: trained rank of each module whose directions may be left out.
        batch_size: examples in one forward pass.
        seed: of the random orders.
        description: of the progress bar.
    """
    directions = KeptDirections(trained.model, ranks)
    gates = [probe.gates(ranks, seed=seed) for probe in probes]
    nats = np.empty((len(probes), len(examples)))
    exact = np.empty(nats.shape, dtype=bool)
    tokens = np.empty(len(examples), dtype=np.int64)
    for batch in response_batches(
        trained.tokenizer,
        [(example.prompt, example.response) for example in examples],
        batch_size=batch_size,
        device=trained.model.device,
        description=description,
    ):
        for row, (probe, kept) in enumerate(zip(probes, gates, strict=True)):
            with directions.keeping(kept, gauge=probe.gauge):
                logits = batch.logits(trained.model)
            scores = batch.scores(teacher_forcing.log_probabilities(logits))
            nats[row, batch.indices] = scores.nats
            exact[row, batch.indices] = scores.exact
            tokens[batch.indices] = scores.tokens
    return ProbeScores(nats, exact, tokens)
