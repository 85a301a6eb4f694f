"""The gates that were observed during training: rescale, share kept, and what shares one mask.

Independent of the record of masks: gates are outputs of the masked A over A x, whatever code
masked them. Eq. 2 of the paper is one mask per step without rescale, its Algorithm 1 and released
code one per token with it, so these are the facts that tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.predictions.group import Group

LEAST_ROUNDING = 1e-3  # relative; matrix products in float32 may be taken in TF32

NO_MASK = Prediction(
    "gates without a mask are 1", "T7", "training", "something masks a run that claims no mask"
)
RESCALE = Prediction(
    "rescale of kept gates", "T7", "training", "kept directions are not scaled as the run says"
)
SHARE = Prediction(
    "gates kept, count",
    "T1",
    "training",
    "the layers keep another share than keep_prob: keep and prune swapped?",
)
AS_RECORDED = Prediction(
    "gates are the recorded masks",
    "T1",
    "training",
    "the layers did not use the masks that were recorded",
)
OVER_TOKENS = Prediction(
    "gates constant over tokens", "T7", "training", "the tokens of a row have masks of their own"
)
OVER_ROWS = Prediction(
    "gates constant over rows", "T7", "training", "the rows of a batch have masks of their own"
)
OVER_CALLS = Prediction(
    "gates constant over micro-batches",
    "T10",
    "training",
    "the forward passes of a step have masks of their own",
)
TOKENS_DIFFER = Prediction(
    "overlap of two tokens, mean",
    "T7",
    "training",
    "tokens do not have independent masks of their own",
)
ROWS_DIFFER = Prediction(
    "overlap of two rows, mean", "T7", "training", "rows do not have independent masks of their own"
)
STEPS_DIFFER = Prediction(
    "overlap of two passes, mean", "T7", "training", "forward passes do not have independent masks"
)


def no_mask(group: Group) -> Iterator[Row]:
    """Without a mask no gate is 0."""
    import torch

    if group.gates and group.law is None:
        gates = torch.cat([seen.gates.flatten() for seen in group.gates])
        yield NO_MASK.never((gates == 0)[~gates.isnan()])


def rescale(group: Group) -> Iterator[Row]:
    """A kept gate is s: 1 / keep_prob, or 1 without rescale or mask; in every observed pass.

    The median over the gates of a pass, as quotients of tiny numbers are noisy, of the module and
    pass in which it lies farthest from s.
    """
    s = 1.0 if group.law is None else group.law.factor
    passes = [
        (kept.median(), max(seen.rounding, LEAST_ROUNDING))
        for seen in group.gates
        for gates in seen.gates
        if len(kept := gates[(gates != 0) & ~gates.isnan()])
    ]
    if passes:
        worst, rounding = max(passes, key=lambda found: abs(float(found[0]) - s) / found[1])
        yield RESCALE.equal(
            s,
            float(worst),
            tolerance=rounding * s,
            basis="rounding of the layer's outputs",
            samples=len(passes),
        )


def share(group: Group) -> Iterator[Row]:
    """Of N independent gates Bin(N, q) are kept; a gate that serves many tokens counts once."""
    if group.law is None or not group.gates:
        return
    seen = [_masks(each.gates[_first_calls(each.steps)]) for each in group.gates]
    if group.law.granularity != "token":
        seen = [masks[:, :, :1] for masks in seen]
    if group.law.granularity == "step":
        seen = [masks[:, :1] for masks in seen]
    draws = [row for masks in seen for row in masks.flatten(0, 2) if not bool((row < 0).any())]
    if not draws:
        return
    counts = [int(row.sum()) for row in draws]
    if group.law.independent_gates:
        kept = [bool(value) for row in draws for value in row.tolist()]
        yield SHARE.count(kept, probability=group.law.keep_prob)
    else:
        yield SHARE.never(group.kept_pmf[counts] == 0)


def as_recorded(group: Group) -> Iterator[Row]:
    """Step gates are the recorded mask of their step."""
    import numpy as np
    import torch

    if group.masks is None or not group.gates:
        return
    wrong = []
    for seen in group.gates:
        known = np.isin(seen.steps.numpy(), group.mask_steps)
        steps = seen.steps.numpy()[known]
        masks = torch.from_numpy(group.masks_of(steps)[:, group.names.index(seen.module)])
        found = _masks(seen.gates[torch.from_numpy(known)])
        differs = (found != masks[:, None, None].to(found)) & (found >= 0)
        wrong.append(differs.any(-1).flatten())
    yield AS_RECORDED.never(torch.cat(wrong))


def shared_by(group: Group) -> Iterator[Row]:
    """What is said to share a mask has the same gates."""
    import torch

    if group.law is None or group.law.granularity == "token" or not group.gates:
        return
    found = [_masks(seen.gates) for seen in group.gates]
    yield OVER_TOKENS.never(torch.cat([_varies(masks, dim=2).flatten() for masks in found]))
    if group.law.granularity == "sample":
        return
    yield OVER_ROWS.never(torch.cat([_varies(masks, dim=1).flatten() for masks in found]))
    repeated = [
        _varies(masks[seen.steps == step], dim=0).flatten()
        for seen, masks in zip(group.gates, found, strict=True)
        for step in seen.steps.unique()
        if int((seen.steps == step).sum()) > 1
    ]
    if repeated:
        yield OVER_CALLS.never(torch.cat(repeated))


def drawn_apart(group: Group) -> Iterator[Row]:
    """What is said to have masks of its own has independent ones: overlap q^2 r on average."""
    import torch

    if group.law is None or group.law.granularity == "step" or not group.gates:
        return
    # Checkpointing repeats a pass, with its masks, in the backward pass: one pass per step counts.
    found = [_masks(seen.gates[_first_calls(seen.steps)]) for seen in group.gates]
    pairs = {ROWS_DIFFER: 1, STEPS_DIFFER: 0}
    if group.law.granularity == "token":
        pairs = {TOKENS_DIFFER: 2, **pairs}
    for prediction, dim in pairs.items():
        overlaps = torch.cat([_overlaps(masks, dim=dim, group=group) for masks in found])
        yield from prediction.mean_count(overlaps.numpy(), pmf=group.overlap_pmf)


PREDICTIONS = (no_mask, rescale, share, as_recorded, shared_by, drawn_apart)


def _masks(gates: Tensor) -> Tensor:
    """Read gates as masks: 1 kept, 0 dropped, which is exact, -1 not seen."""
    masks: Tensor = (gates != 0).int().masked_fill(gates.isnan(), -1)
    return masks


def _varies(masks: Tensor, *, dim: int) -> Tensor:
    """Tell where kept and dropped both occur along a dimension."""
    varies: Tensor = (masks == 1).any(dim) & (masks == 0).any(dim)
    return varies


def _overlaps(masks: Tensor, *, dim: int, group: Group) -> Tensor:
    """Overlaps of masks (calls, rows, tokens, r) with their neighbours, each mask in one pair."""
    assert group.law is not None
    if group.law.granularity == "sample":
        masks = masks[:, :, :1]
    even = masks.shape[dim] // 2 * 2
    first = masks.narrow(dim, 0, even).unflatten(dim, (-1, 2)).select(dim + 1, 0)
    second = masks.narrow(dim, 0, even).unflatten(dim, (-1, 2)).select(dim + 1, 1)
    seen = ((first >= 0) & (second >= 0)).all(-1)
    overlaps: Tensor = ((first == 1) & (second == 1)).sum(-1)[seen]
    return overlaps


def _first_calls(steps: Tensor) -> list[int]:
    """Places of the first forward pass of each step."""
    return [int((steps == step).nonzero()[0]) for step in steps.unique()]
