"""A trained model under single rank masks, their ensembles and inference scales, on rows of a task.

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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from subspace_lab.adapters.mask import RankMask
from subspace_lab.evaluation.responses import response_batches
from subspace_lab.runs.run import Run
from subspace_lab.tasks import Example
from subspace_lab.theory.ensembles import arithmetic_ensemble, geometric_ensemble, jensen_gap
from subspace_lab.theory.mask_law import DEFAULT_LAW
from subspace_lab.trained import TrainedModel

SCALES = (0.5, 0.75, 1.25, 1.5)
FIRST_DRAW = 1 << 40
"""Draws are step masks of steps that no training reaches."""


class Predictor(NamedTuple):
    """One way to predict with a trained adapter: name, masks in it, inference scale, draw."""

    name: str
    masks: int
    scale: float
    draw: int


Context = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass
class Tally:
    """Sums over rows: what a predictor scored.

    Attributes:
        nats: loss summed over response tokens.
        tokens: how many tokens those are.
        jensen_gap: of an ensemble, in nats summed over response tokens.
        rows: for each row, whether greedy decoding would reproduce it exactly.
    """

    nats: float = 0.0
    tokens: int = 0
    jensen_gap: float = 0.0
    rows: list[bool] = field(default_factory=list)

    def add(self, log_probabilities: Tensor, targets: Tensor, rows: Tensor) -> None:
        """Add response tokens: log-probabilities (tokens, vocabulary), targets and row numbers."""
        chosen = log_probabilities.gather(-1, targets[:, None]).squeeze(-1)
        self.nats -= float(chosen.double().sum())
        self.tokens += len(targets)
        wrong = log_probabilities.argmax(-1) != targets
        failed = torch.zeros(int(rows.max()) + 1, dtype=torch.bool).index_put_(
            (rows,), wrong.cpu(), accumulate=True
        )
        self.rows += (~failed).tolist()


@torch.no_grad()
def evaluate(
    run: Run,
    trained: TrainedModel,
    examples: Sequence[Example],
    *,
    masks: int,
    batch_size: int,
    seed: int,
) -> dict[Predictor, Tally]:
    """Score every predictor by teacher forcing.

    Args:
        run: the run that `trained` is of: its mask law is used, and its trained rank.
        trained: the model; a rank mask is put on it.
        examples: what is predicted.
        masks: masks drawn.
        batch_size: rows in one forward pass.
        seed: seed of the drawn masks.
    """
    contexts = predictors(run, trained.model, masks=masks, seed=seed)
    ensembles = {
        Predictor("arithmetic", masks, 1.0, -1): arithmetic_ensemble,
        Predictor("geometric", masks, 1.0, -1): geometric_ensemble,
    }
    tallies = {predictor: Tally() for predictor in [*contexts, *ensembles]}
    for batch in response_batches(
        trained.tokenizer,
        [(example.prompt, example.response) for example in examples],
        batch_size=batch_size,
        device=trained.model.device,
        description=f"ensembles of {run.name}",
    ):
        singles = []
        rows = batch.rows.cpu()
        for predictor, context in contexts.items():
            with context():
                log_probabilities = batch.logits(trained.model).float().log_softmax(-1)
            tallies[predictor].add(log_probabilities, batch.targets, rows)
            if predictor.name == "single":
                singles.append(log_probabilities)
        stacked = torch.stack(singles)
        gap = float(jensen_gap(stacked).double().sum())
        for predictor, ensemble in ensembles.items():
            tallies[predictor].add(ensemble(stacked), batch.targets, rows)
            tallies[predictor].jensen_gap += gap
    return tallies


def predictors(run: Run, model: PeftModel, *, masks: int, seed: int) -> dict[Predictor, Context]:
    """Give a context manager for each predictor that is one forward pass.

    The base is the update at scale 0; where training split it, that was W_res and not the base,
    which gets the scale nan.
    """
    law = (run.mask_law or DEFAULT_LAW).one_draw()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the adapter is trained already is the point here
        mask = RankMask.of(replace(law, granularity="step", seed=seed)).attach(model)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))

    def under(gates: Mapping[str, Tensor]) -> Context:
        return functools.partial(mask.in_evaluation, _leaving_the_start(mask, gates))

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
        Predictor("base", 0, scale_of_base, -1): model.disable_adapter,
        Predictor("full", 0, 1.0, -1): contextlib.nullcontext,
        **{Predictor("scaled", 0, scale, -1): scaled(scale) for scale in sorted(scales)},
        **{Predictor("single", 1, 1.0, draw): single(draw) for draw in range(masks)},
    }


def _leaving_the_start(mask: RankMask, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extend gates of the trained directions, (r,) or (r, r), by ones for the start's."""
    ones = {name: torch.ones(mask.ranks[name] - len(gate)) for name, gate in gates.items()}
    if mask.law.diagonal:
        return {name: torch.cat([gate, ones[name]]) for name, gate in gates.items()}
    return {name: torch.block_diag(gate, ones[name].diag()) for name, gate in gates.items()}
