"""A trained adapter with some of its rank directions left out, in either of two gauges.

The update of a module is a sum of r directions, B A = sum_i b_i a_i^T, and so is that of any other
factorization of the same product. Two are of interest: the trained one, whose directions a rank
mask multiplies, and the singular one, U S V^T, whose first k directions are the best approximation
of rank k (Eckart and Young 1936). PiSSA and MiLoRA subtract their start, which a snapshot holds in
trailing directions: those stay whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from analyses.rank_curve.probes import Gauge, Probe
from subspace_lab import teacher_forcing
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.linalg.spectra import singular_vectors
from subspace_lab.tasks.examples import Example


class KeptDirections:
    """Leaves out rank directions of a model by its weights alone; nothing is rescaled.

    Args:
        model: a PEFT model.
        ranks: the trained rank r of each module whose directions may be left out.
    """

    def __init__(self, model: nn.Module, ranks: Mapping[str, int]) -> None:
        self._modules = {module.name: module for module in lora_modules(model)}
        trained, singular = {}, {}
        for name, r in ranks.items():
            module = self._modules[name]
            B, A = module.B[:, :r].detach().clone(), module.A[:r].detach().clone()
            trained[name], singular[name] = (B, A), _singular(B, A)
        self._factors = {"trained": trained, "singular": singular}

    @contextlib.contextmanager
    def keeping(self, gates: Mapping[str, Tensor], *, gauge: Gauge = "trained") -> Iterator[None]:
        """Multiply the directions of modules by gates, (r,) each, and put them back at the end."""
        self._write(gates, gauge)
        try:
            yield
        finally:
            self._write({name: torch.ones(len(gate)) for name, gate in gates.items()}, "trained")

    @torch.no_grad()
    def _write(self, gates: Mapping[str, Tensor], gauge: Gauge) -> None:
        for name, gate in gates.items():
            module, (B, A) = self._modules[name], self._factors[gauge][name]
            module.A[: len(gate)] = gate.to(A)[:, None] * A
            module.B[:, : len(gate)] = B


def _singular(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Factorize B A as (U S) V^T, (m, r) and (r, n), of the same dtype."""
    svd = singular_vectors(B, A)
    US, Vh = B.new_zeros(B.shape), A.new_zeros(A.shape)
    US[:, : len(svd.S)], Vh[: len(svd.S)] = (svd.U * svd.S).to(B), svd.Vh.to(A)
    return US, Vh


@dataclass(frozen=True)
class ProbeScores:
    """Scores of responses by probe and example, as in `teacher_forcing.ResponseScores`."""

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

    `ranks` are the trained ones of the modules whose directions may be left out, and `seed` is that
    of the random orders.
    """
    directions = KeptDirections(trained.model, ranks)
    gates = [probe.gates(ranks, seed=seed) for probe in probes]
    nats = np.empty((len(probes), len(examples)))
    exact = np.empty(nats.shape, dtype=bool)
    tokens = np.empty(len(examples), dtype=np.int64)
    for batch in trained.batches(examples, batch_size=batch_size, description=description):
        for row, (probe, kept) in enumerate(zip(probes, gates, strict=True)):
            with directions.keeping(kept, gauge=probe.gauge):
                logits = batch.logits(trained.model)
            scores = batch.scores(teacher_forcing.log_probabilities(logits))
            nats[row, batch.indices] = scores.nats
            exact[row, batch.indices] = scores.exact
            tokens[batch.indices] = scores.tokens
    return ProbeScores(nats, exact, tokens)
