"""The gates that were observed during training: rescale, share kept, and what shares one mask.

Independent of the record of masks: gates are outputs of the masked A over A x, whatever code
masked them. Eq. 2 of the paper is one mask per step without rescale, its Algorithm 1 and released
code one per token with it, so these are the facts that tell the two apart.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from analyses.mask_theory import chance, needs
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    no_exceptions,
    within_rounding,
)
from analyses.mask_theory.drawn_masks import disjoint_pairs
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group

MIN_ROUNDING = 1e-3  # relative; matrix products in float32 may be taken in TF32

of_gates = functools.partial(prediction, always=(needs.GATES,), tests="training")


@of_gates(
    "T7",
    "gates without a mask are 1",
    "gates are zero in a run that is said to have no mask",
    needs.UNMASKED,
)
def no_mask(group: Group) -> Comparison:
    """Without a mask no gate is 0."""
    gates = torch.cat([observed.gates.flatten() for observed in group.gates])
    return no_exceptions((gates == 0)[~gates.isnan()])


@of_gates(
    "T7",
    "rescale of kept gates",
    "kept directions are not scaled as the run says",
    needs.ONE_FACTOR,
)
def rescale(group: Group) -> Comparison:
    """A kept gate is s: 1 / keep_prob, or 1 without rescale or mask; in every observed pass.

    The median over the gates of a pass, as quotients of tiny numbers are noisy, of the module and
    pass in which it lies farthest from s.
    """
    s = 1.0 if group.law is None else group.law.factor
    passes = [
        (float(kept.median()), max(observed.rounding, MIN_ROUNDING))
        for observed in group.gates
        for gates in observed.gates
        if len(kept := gates[(gates != 0) & ~gates.isnan()])
    ]
    if not passes:
        raise NotTestableError("no direction was kept in an observed pass")
    worst, rounding = max(passes, key=lambda of_pass: abs(of_pass[0] - s) / of_pass[1])
    basis = "rounding of the layer's outputs"
    return within_rounding(s, worst, tolerance=rounding * s, basis=basis, samples=len(passes))


@of_gates(
    "T1",
    "gates kept, count",
    "the share that the layers keep is not keep_prob: keep and prune swapped?",
    needs.INDEPENDENT_DRAWS,
)
def share(group: Group) -> Comparison:
    """Of N independent gates Bin(N, q) are kept; a gate that serves many tokens counts once."""
    law = known(group.law)
    tokens = slice(None if law.granularity == "token" else 1)
    samples = slice(1 if law.granularity == "step" else None)
    draws = torch.cat(
        [
            _masks(observed.gates[_first_calls(observed.steps)])[:, samples, tokens].flatten(0, 2)
            for observed in group.gates
        ]
    )
    draws = draws[(draws >= 0).all(-1)]
    if not len(draws):
        raise NotTestableError("no whole mask was observed")
    if law.independent_gates:
        return chance.count_of_events(draws.flatten().numpy() == 1, probability=law.keep_prob)
    return no_exceptions(law.kept_pmf(group.rank)[draws.sum(-1).numpy()] == 0)


@of_gates(
    "T1",
    "gates are the recorded masks",
    "the layers did not use the recorded masks",
    needs.STEP_MASKS,
)
def as_recorded(group: Group) -> Comparison:
    """Step gates are the recorded mask of their step."""
    wrong = []
    for observed in group.gates:
        recorded = np.isin(observed.steps.numpy(), group.mask_steps)
        steps = observed.steps.numpy()[recorded]
        masks = torch.from_numpy(group.masks_of(steps)[:, group.names.index(observed.module)])
        gates = _masks(observed.gates[torch.from_numpy(recorded)])
        differs = (gates != masks[:, None, None].to(gates)) & (gates >= 0)
        wrong.append(differs.any(-1).flatten())
    return no_exceptions(torch.cat(wrong))


def _constant(over: str, need: Need, *, dim: int) -> Prediction:
    """Predict that a gate never varies along a dimension of (calls, examples, tokens, r)."""
    if_it_fails = f"{over} have masks of their own"

    @of_gates("T7", f"gates constant over {over}", if_it_fails, need, needs.MASKS)
    def constant(group: Group) -> Comparison:
        varies = [_varies(_masks(observed.gates), dim=dim).flatten() for observed in group.gates]
        return no_exceptions(torch.cat(varies))

    return constant


over_tokens = _constant("tokens", needs.SHARED_BY_TOKENS, dim=2)
over_examples = _constant("examples", needs.SHARED_BY_SAMPLES, dim=1)


@of_gates(
    "T10",
    "gates constant over micro-batches",
    "forward passes have masks of their own",
    needs.SHARED_BY_SAMPLES,
    needs.MASKS,
)
def over_calls(group: Group) -> Comparison:
    """Masks per step: all forward passes of a step have the same gates."""
    repeated = [
        _varies(_masks(observed.gates[observed.steps == step]), dim=0).flatten()
        for observed in group.gates
        for step in observed.steps.unique()
        if int((observed.steps == step).sum()) > 1
    ]
    if not repeated:
        raise NotTestableError("no step with several forward passes was observed")
    return no_exceptions(torch.cat(repeated))


def _independent(several: str, need: Need, *, dim: int) -> Prediction:
    """Predict that masks along a dimension overlap as independent draws, in q^2 r on average.

    Neighbors are compared, each mask in one pair. Checkpointing repeats a pass, with its masks, in
    the backward pass: one pass per step counts.
    """
    name, if_it_fails = (
        f"overlap of two {several}, mean",
        f"{several} do not have independent masks",
    )

    @of_gates("T7", name, if_it_fails, need, needs.INDEPENDENT_DRAWS)
    def independent(group: Group) -> Comparison:
        law, overlaps = known(group.law), []
        tokens = slice(1 if law.granularity == "sample" else None)
        for observed in group.gates:
            masks = _masks(observed.gates[_first_calls(observed.steps)])[:, :, tokens]
            first, second = disjoint_pairs(masks.movedim(dim, 0).numpy(), lag=1)
            whole = ((first >= 0) & (second >= 0)).all(-1)
            overlaps.append(((first == 1) & (second == 1)).sum(-1)[whole])
        return chance.mean_of_counts(np.concatenate(overlaps), pmf=law.overlap_pmf(group.rank))

    return independent


tokens_differ = _independent("tokens", needs.TOKEN_MASKS, dim=2)
examples_differ = _independent("examples", needs.DRAWN_IN_PASSES, dim=1)
passes_differ = _independent("passes", needs.DRAWN_IN_PASSES, dim=0)


def _masks(gates: Tensor) -> Tensor:
    """Read gates as masks: 1 kept, 0 dropped, which is exact, -1 not observed."""
    return (gates != 0).int().masked_fill(gates.isnan(), -1)


def _varies(masks: Tensor, *, dim: int) -> Tensor:
    """Tell where kept and dropped both occur along a dimension."""
    return (masks == 1).any(dim) & (masks == 0).any(dim)


def _first_calls(steps: Tensor) -> list[int]:
    """Places of the first forward pass of each step."""
    return [int((steps == step).nonzero()[0]) for step in steps.unique()]
