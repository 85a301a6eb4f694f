"""A trained model under single rank masks, their ensembles and inference scales.

The masks multiply the r rank directions that training masked. For most methods those are all that
a snapshot has. PiSSA and MiLoRA train B A on W_res = W0 - scaling * B0 A0, and their snapshots are
valid on W0, so under a mask d with rescale factor s the model of training is

    W_res + scaling * s * B diag(d) A = W0 + scaling * [B, -B0] diag(s d, 1) [A; A0]:

the trailing directions, the subtracted start, stay whole under every mask and scale.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from subspace_lab import teacher_forcing
from subspace_lab.evaluation.responses import ResponseBatch, response_batches
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.runs.run import Run
from subspace_lab.tasks.examples import Example
from subspace_lab.theory.ensembles import arithmetic_ensemble, geometric_ensemble, jensen_gap
from subspace_lab.theory.mask_law import DEFAULT_LAW

SCALES = (0.5, 0.75, 1.25, 1.5)
FIRST_DRAW = 1 << 40
"""Draws are step masks of steps that no training reaches."""
ENSEMBLES = {"arithmetic": arithmetic_ensemble, "geometric": geometric_ensemble}


class Predictor(NamedTuple):
    """One way to predict with a trained adapter: name, masks in it, inference scale, draw."""

    name: str
    masks: int
    scale: float
    draw: int


Context = Callable[[], contextlib.AbstractContextManager[Any]]


@torch.no_grad()
def score_predictors(
    run: Run,
    trained: TrainedModel,
    examples: Sequence[Example],
    *,
    masks: int,
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """Score every predictor by teacher forcing.

    Args:
        run: the run that `trained` is of: its mask law is used, and its trained rank.
        trained: the model; a rank mask is put on it.
        examples: what is predicted.
        masks: masks drawn.
        batch_size: examples in one forward pass.
        seed: seed of the drawn masks.

    Returns:
        A row for each predictor: `predictor`, `masks` (how many are in it), `scale` (of B A; nan
        for the base of PiSSA and MiLoRA), `draw` (which mask, else -1), `loss` (nats per response
        token), `accuracy`, `examples`, `jensen_gap` (nats per token, of the ensembles: mean loss
        of single masks minus that of the geometric one, from the predictions alone).
    """
    contexts = predictors(run, trained, masks=masks, seed=seed)
    ensembles = {Predictor(name, masks, 1.0, -1): mean for name, mean in ENSEMBLES.items()}
    sums = {predictor: torch.zeros(2, dtype=torch.float64) for predictor in [*contexts, *ensembles]}
    tokens, gap = 0, 0.0
    for batch in response_batches(
        trained.tokenizer,
        [(example.prompt, example.response) for example in examples],
        batch_size=batch_size,
        device=trained.model.device,
        description=f"ensembles of {run.name}",
    ):
        singles = []
        for predictor, context in contexts.items():
            with context():
                log_probabilities = teacher_forcing.log_probabilities(batch.logits(trained.model))
            sums[predictor] += _nats_and_exact(batch, log_probabilities)
            if predictor.name == "single":
                singles.append(log_probabilities)
        stacked = torch.stack(singles)
        for predictor, mean in ensembles.items():
            sums[predictor] += _nats_and_exact(batch, mean(stacked))
        tokens += len(batch.targets)
        gap += float(jensen_gap(stacked).double().sum())
    return pd.DataFrame(
        {
            "predictor": predictor.name,
            "masks": predictor.masks,
            "scale": predictor.scale,
            "draw": predictor.draw,
            "loss": nats / tokens,
            "accuracy": exact / len(examples),
            "examples": len(examples),
            "jensen_gap": gap / tokens if predictor in ensembles else float("nan"),
        }
        for predictor, (nats, exact) in ((key, value.tolist()) for key, value in sums.items())
    )


def _nats_and_exact(batch: ResponseBatch, log_probabilities: Tensor) -> Tensor:
    """Sum over responses (2,): their nats, and how many greedy decoding would reproduce."""
    scores = batch.scores(log_probabilities)
    return torch.stack([scores.nats.sum(), scores.exact.sum()])


def predictors(
    run: Run, trained: TrainedModel, *, masks: int, seed: int
) -> dict[Predictor, Context]:
    """Give a context manager for each predictor that is one forward pass.

    The base is the update at scale 0; where training split it, that was W_res and not the base,
    which gets the scale nan.
    """
    from subspace_lab.adapters.mask import RankMask  # with torch._dynamo, a second

    law = (run.mask_law or DEFAULT_LAW).one_draw()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the adapter is trained already is the point here
        mask = RankMask.of(replace(law, granularity="step", seed=seed)).attach(trained.model)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))

    def under(gates: Mapping[str, Tensor]) -> Context:
        return functools.partial(mask.in_evaluation, _leaving_the_start(gates, mask.ranks))

    def scaled(scale: float) -> Context:
        ones = {name: torch.ones(r) for name, r in ranks.items()}
        return under({n: scale * (g if law.diagonal else g.diag()) for n, g in ones.items()})

    def single(draw: int) -> Context:
        step = FIRST_DRAW + draw
        gates = {name: mask.law.step_gates(step, name, r) for name, r in ranks.items()}
        return under({name: torch.from_numpy(gate).float() for name, gate in gates.items()})

    scale_of_base = 0.0 if ranks == mask.ranks else float("nan")
    scales = {*SCALES, mask.law.keep_prob} - {1.0}
    return {
        Predictor("base", 0, scale_of_base, -1): trained.model.disable_adapter,
        Predictor("full", 0, 1.0, -1): contextlib.nullcontext,
        **{Predictor("scaled", 0, scale, -1): scaled(scale) for scale in sorted(scales)},
        **{Predictor("single", 1, 1.0, draw): single(draw) for draw in range(masks)},
    }


def _leaving_the_start(gates: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Extend gates of the trained directions, (r,) or (r, r), to the ranks, by ones."""
    ones = {name: torch.ones(ranks[name] - len(gate)) for name, gate in gates.items()}
    return {
        name: torch.cat([gate, ones[name]])
        if gate.dim() == 1
        else torch.block_diag(gate, ones[name].diag())
        for name, gate in gates.items()
    }
