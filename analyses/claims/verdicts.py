"""Verdicts on claims that rest on predictions about single runs.

Each claim names the predictions that it rests on, and how their outcomes map to verdicts, by the
thresholds below; claims about differences to LoRA are in `gains`. Runs that were not trained as
they say give no verdict (`Evidence.excluded`, which the output lists).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analyses.claims.evidence import Evidence, Finding, Verdict, last_cores, needs
from analyses.mask_theory import (
    displacements,
    drawn_masks,
    dropped_directions,
    first_steps,
    masked_updates,
)
from analyses.mask_theory import observed_gates as gates
from analyses.mask_theory.prediction import Prediction, known
from subspace_lab import linalg
from subspace_lab.runs.run import Run

OWN = 0.1  # Jaccard index up to which successive masks are subspaces of their own
MOST = 0.5  # share of the directions
HALF = (0.4, 0.6)  # ratios that are called half
MOVED = 0.01  # share of the displacement below which masked directions stand still
STATIC = 1.0  # degrees; a frame that turned less may well be called static
FASTER = 2.0  # times LoRA's turn, from which on a frame is called more dynamic
SAME_FACTOR = 0.01  # relative difference of two rescale factors that are called equal

Outcomes = Callable[[Evidence, Sequence[Run]], Sequence[Verdict]]


def rests_on(
    predictions: Mapping[str, Prediction], *, otherwise_needs: str, half_kept: bool = False
) -> Callable[[Outcomes], Callable[[Evidence], Finding]]:
    """Make the finding on a claim of the verdicts that outcomes of predictions give.

    Args:
        predictions: what the claim rests on, by the words in which it is quoted.
        otherwise_needs: what testing the claim takes.
        half_kept: only runs of keep_prob 0.5 count.
    """

    def declare(outcomes: Outcomes) -> Callable[[Evidence], Finding]:
        def finding(evidence: Evidence) -> Finding:
            runs = [
                run
                for run in evidence.masked()
                if not half_kept or known(run.mask_law).keep_prob == 0.5
            ]
            if not (verdicts := outcomes(evidence, runs)):
                return needs(otherwise_needs)
            quotes = {label: evidence.quote(p, runs) for label, p in predictions.items()}
            shown = [f"{label}: {numbers}." for label, numbers in quotes.items() if numbers]
            return Finding(combine(verdicts), " ".join(shown))

        return finding

    return declare


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Join the verdicts of single runs: what all say, else that it holds in part."""
    return verdicts[0] if len(set(verdicts)) == 1 else "supported in part"


@rests_on(
    {
        "Gates that differ between the tokens of an example": gates.over_tokens,
        "Directions that two tokens share, token masks": gates.tokens_differ,
        "Value of a kept gate": gates.rescale,
    },
    otherwise_needs="a run with a mask per step and one with a mask per token, with their gates",
)
def same_method(evidence: Evidence, runs: Sequence[Run]) -> list[Verdict]:
    """Compare what shares a mask, and the factor on it, in runs of Eq. 2 and of Algorithm 1."""
    step, token = (evidence.masked(granularity=name) for name in ("step", "token"))
    of_step, of_token = (set(_tokens_share(evidence, kind).values()) for kind in (step, token))
    if not of_step or not of_token:
        return []
    if of_step == {True} and of_token == {False}:
        return ["contradicted"]
    if len(of_step | of_token) > 1:
        return ["undecided"]
    factors = [set(evidence.measured(gates.rescale, kind).round(2)) for kind in (step, token)]
    return ["supported" if factors[0] == factors[1] else "supported in part"]


@rests_on(
    {
        "Jaccard index of successive masks": drawn_masks.jaccard,
        "Gates that differ between examples of a batch": gates.over_examples,
        "Directions that step 1 did not update, masks per sample or token": first_steps.untouched,
    },
    otherwise_needs="a masked run",
)
def one_subspace_a_step(evidence: Evidence, runs: Sequence[Run]) -> list[Verdict]:
    """Ask whether a step uses one subspace, and whether the next step's is another."""
    verdicts: list[Verdict] = []
    for run in evidence.masked(granularity="step"):
        jaccard = evidence.measured(drawn_masks.jaccard, [run])
        if not jaccard.empty:
            constant = (gates.over_tokens, gates.over_examples)
            varies = sum(evidence.measured(prediction, [run]).sum() for prediction in constant)
            own = bool((jaccard <= OWN).all())
            alike: Verdict = "supported" if own else "supported in part"
            verdicts.append("contradicted" if varies else alike)
    for run in evidence.masked(granularity="token"):
        rows = evidence.rows(first_steps.untouched, [run])
        if not rows.empty:
            updated = 1 - rows["measured"].sum() / rows["samples"].sum()
            verdicts.append("contradicted" if updated > MOST else "supported")
    return verdicts


def never_twice(evidence: Evidence) -> Finding:
    """Count the steps whose mask a module had before."""
    runs = [run for run in evidence.masked(granularity="step") if run.mask_steps]
    if not runs:
        return needs("a run with a mask per step")
    shown: list[str] = []
    verdicts: list[Verdict] = []
    for run in runs:
        sizes = run.modules["r"].unique()
        of_modules = [masks for r in sizes for masks in run.masks_of_rank(int(r))[1].swapaxes(0, 1)]
        total = sum(map(len, of_modules))
        again = total - sum(len(np.unique(masks, axis=0)) for masks in of_modules)
        verdicts.append("contradicted" if again else "supported")
        ranks = "/".join(map(str, sizes))
        shown.append(f"{run.name}: {again / total:.1%} (r = {ranks}, n = {total:,})")
    text = f"Masks that the same module had in an earlier step: {'; '.join(shown)}."
    return Finding(combine(verdicts), text)


@rests_on(
    {
        "Mean number of kept directions": drawn_masks.kept,
        "Masked updates whose rank is not that number": masked_updates.rank,
        "Masked over full, entropy effective rank": masked_updates.entropy_rank,
        "Masked over full, stable rank": masked_updates.stable_rank,
    },
    otherwise_needs="a run with step masks of keep_prob 0.5 and cores",
    half_kept=True,
)
def half_the_rank(evidence: Evidence, runs: Sequence[Run]) -> list[Verdict]:
    """Ask which ranks of masked updates are half of the full update's at keep_prob 0.5."""
    exceptions = evidence.measured(masked_updates.rank, runs)
    kept = evidence.rows(drawn_masks.kept, runs)
    if exceptions.empty or kept.empty:
        return []
    # The rank is that of the mask, so its mean is half of r where that of the masks is.
    halved = [_is_half(0.5 * kept["measured"] / kept["predicted"]) and not exceptions.sum()]
    shrinking = (masked_updates.entropy_rank, masked_updates.stable_rank)
    halved += [_is_half(evidence.measured(prediction, runs)) for prediction in shrinking]
    return ["supported" if half else "contradicted" for half in halved]


@rests_on(
    {
        "AdamW, share of B's displacement made while masked": displacements.leakage_of_b,
        "Of A's": displacements.leakage_of_a,
        "SGD, masked directions that moved": dropped_directions.still,
    },
    otherwise_needs="a run with step masks and cores of every step",
)
def only_the_kept(evidence: Evidence, runs: Sequence[Run]) -> list[Verdict]:
    """Ask how far masked directions moved, under AdamW and under SGD."""
    moved = [
        *(evidence.measured(displacements.leakage_of_b, runs) > MOVED),
        *(evidence.measured(dropped_directions.still, runs) > 0),
    ]
    return ["contradicted" if of_run else "supported" for of_run in moved]


@rests_on(
    {
        "Value of a kept gate": gates.rescale,
        "Number of gates kept": gates.share,
        "Directions that two tokens share (token masks)": gates.tokens_differ,
        "Examples whose tokens have different gates (other masks)": gates.over_tokens,
    },
    otherwise_needs="masked runs with their gates; one with a mask per token, as in the code",
)
def unlike_dropout(evidence: Evidence, runs: Sequence[Run]) -> list[Verdict]:
    """Ask which runs mask each token with coin flips of its own and the rescale of dropout."""
    verdicts: list[Verdict] = []
    for run in runs:
        shared = _tokens_share(evidence, [run])
        factors = evidence.measured(gates.rescale, [run])
        if not shared or factors.empty:
            continue
        expected = 1 / known(run.mask_law).keep_prob
        rescaled = bool((abs(factors / expected - 1) < SAME_FACTOR).all())
        dropout = rescaled and not shared[run.name] and known(run.mask_law).independent_gates
        verdicts.append("contradicted" if dropout else "supported")
    return verdicts


def static_subspace(evidence: Evidence) -> Finding:
    """Ask whether LoRA's row space of A stands still, and a masked run's does not."""
    lora, of_masks = evidence.lora, evidence.masked()
    turns = {run: turn for run in lora + of_masks if (turn := _turned(run)) is not None}
    plain, masked = ([turns[run][0] for run in runs if run in turns] for runs in (lora, of_masks))
    if not plain or not masked:
        return needs("a LoRA run and a masked run with cores")
    shown = "; ".join(
        f"{run.name}: {degrees:.1f}° (n = {modules} modules, update of rank {rank} of r = {most})"
        for run, (degrees, modules, rank, most) in turns.items()
    )
    return Finding(
        moving_verdict(plain, masked),
        "Median over modules of the largest angle between the row space of A at the end and at "
        f"the start: {shown}.",
    )


def moving_verdict(plain: Sequence[float], masked: Sequence[float]) -> Verdict:
    """Decide by the turns of LoRA's and of masked runs' frames in degrees."""
    if max(masked) <= STATIC:
        return "contradicted"  # nothing moves with masks
    if max(plain) <= STATIC:
        return "supported" if min(masked) > STATIC else "supported in part"
    return "supported in part" if min(masked) > FASTER * max(plain) else "contradicted"


def two_masks(evidence: Evidence) -> Finding:
    """No run of this toolkit has a mask on each factor."""
    return needs("runs with a mask on A and another on B, next to runs with one; no run has two")


def _tokens_share(evidence: Evidence, runs: Sequence[Run]) -> dict[str, bool]:
    """By run: whether the tokens of an example have one mask, from the observed gates.

    Masks per step and sample: no example has tokens of different gates. Masks per token: two tokens
    share more directions than halfway from q^2 r (independent masks) to q r (one mask).
    """
    shared: dict[str, bool] = {}
    for run in runs:
        varies = evidence.measured(gates.over_tokens, [run])
        overlaps = evidence.rows(gates.tokens_differ, [run])
        if not varies.empty:
            shared[run.name] = not varies.sum()
        elif not overlaps.empty:
            halfway = overlaps["predicted"] * (1 + 1 / known(run.mask_law).keep_prob) / 2
            shared[run.name] = bool((overlaps["measured"] >= halfway).all())
    return shared


def _is_half(ratios: pd.Series[float]) -> bool:
    return bool(len(ratios)) and bool(ratios.between(*HALF).all())


def _turned(run: Run) -> tuple[float, int, int, int] | None:
    """Median largest angle of row(A) since the start in degrees, modules, largest rank, and r."""
    angles: list[float] = []
    ranks: list[int] = []
    for batch in last_cores(run):
        row = batch.core.row
        if row.start is None:
            return None
        turned = linalg.principal_angles(row.now(), row.before("start"))
        angles += torch.rad2deg(turned[..., -1]).flatten().tolist()
        sigma = batch.core.singular_values()
        ranks.append(int(linalg.effective_rank(sigma, measure="numerical").max()))
    if not angles:
        return None
    return float(np.median(angles)), len(angles), max(ranks), int(run.modules["r"].max())
