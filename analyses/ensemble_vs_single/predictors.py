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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subspace_lab import teacher_forcing
from subspace_lab.evaluation.responses import ResponseBatch
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.runs.run import Run
from subspace_lab.tasks.examples import Example
from subspace_lab.theory.ensembles import arithmetic_ensemble, geometric_ensemble, jensen_gap
from subspace_lab.theory.mask_law import MaskLaw

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


class Prediction(NamedTuple):
    """What a predictor says of the response tokens of a batch, (tokens, vocabulary).

    The Jensen gap is that of an ensemble: mean nats of single masks minus those of the geometric
    ensemble, summed over the tokens, from the predictions alone.
    """

    batch: ResponseBatch
    predictor: Predictor
    log_probabilities: Tensor
    jensen_gap: float = float("nan")


Context = Callable[[], contextlib.AbstractContextManager[Any]]


def predictions(
    trained: TrainedModel,
    examples: Sequence[Example],
    contexts: Mapping[Predictor, Context],
    *,
    batch_size: int,
    description: str,
) -> Iterator[Prediction]:
    """Predict examples, batch by batch, with each of `predictors` and then with the ensembles."""
    masks = sum(predictor.name == "single" for predictor in contexts)
    for batch in trained.batches(examples, batch_size=batch_size, description=description):
        singles = []
        for predictor, context in contexts.items():
            with context(), torch.no_grad():
                log_probabilities = teacher_forcing.log_probabilities(batch.logits(trained.model))
            if predictor.name == "single":
                singles.append(log_probabilities)
            yield Prediction(batch, predictor, log_probabilities)
        stacked = torch.stack(singles)
        gap = float(jensen_gap(stacked).double().sum())
        for name, mean in ENSEMBLES.items():
            yield Prediction(batch, Predictor(name, masks, 1.0, -1), mean(stacked), gap)


def predictors(
    run: Run, trained: TrainedModel, *, law: MaskLaw, masks: int
) -> dict[Predictor, Context]:
    """Give a context manager for each predictor that is one forward pass, of `masks` drawn ones.

    A rank mask is put on the model. The base is the update at scale 0; where training split it,
    that was W_res and not the base, which gets the scale nan.
    """
    from subspace_lab.adapters.mask import RankMask  # with torch._dynamo, a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the adapter is trained already is the point here
        mask = RankMask.of(law).attach(trained.model)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))

    def under(gates: Mapping[str, Tensor]) -> Context:
        """Put gates, (r,) or (r, r), on the trained directions, and 1 on the start."""
        whole = {}
        for name, gate in gates.items():
            ones = torch.ones(mask.ranks[name] - len(gate))
            diagonal = gate.dim() == 1
            whole[name] = (
                torch.cat([gate, ones]) if diagonal else torch.block_diag(gate, ones.diag())
            )
        return functools.partial(mask.in_evaluation, whole)

    def scaled(scale: float) -> Context:
        unit = torch.ones if law.diagonal else torch.eye
        return under({name: scale * unit(r) for name, r in ranks.items()})

    def single(draw: int) -> Context:
        gates = {n: mask.law.step_gates(FIRST_DRAW + draw, n, r) for n, r in ranks.items()}
        return under({name: torch.from_numpy(gate).float() for name, gate in gates.items()})

    scale_of_base = 0.0 if ranks == mask.ranks else float("nan")
    scales = {*SCALES, mask.law.keep_prob} - {1.0}
    return {
        Predictor("base", 0, scale_of_base, -1): trained.model.disable_adapter,
        Predictor("full", 0, 1.0, -1): contextlib.nullcontext,
        **{Predictor("scaled", 0, scale, -1): scaled(scale) for scale in sorted(scales)},
        **{Predictor("single", 1, 1.0, draw): single(draw) for draw in range(masks)},
    }
