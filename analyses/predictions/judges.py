"""What runs show of the paper's claims: one function of the evidence for each claim.

A verdict follows from measured numbers and the thresholds below; claims that are about differences
to LoRA are in `gains`. Runs that were not trained as they say give none (`Evidence.excluded`, which
the output lists).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyses.predictions.evidence import Evidence, Finding, Verdict, needs

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run

OWN = 0.1  # Jaccard index up to which successive masks are subspaces of their own
MOST = 0.5  # share of the directions
HALF = (0.4, 0.6)  # ratios that are called half
MOVED = 0.01  # share of the displacement below which masked directions stand still
STATIC = 1.0  # degrees; a frame that turned less may well be called static
FASTER = 2.0  # times LoRA's turn, from which on a frame is called more dynamic
SAME_FACTOR = 0.01  # relative difference of two rescale factors that are called equal

OVER_TOKENS, OVER_ROWS = "gates constant over tokens", "gates constant over rows"
TOKENS_DIFFER, RESCALE = "overlap of two tokens, mean", "rescale of kept gates"


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Join the verdicts of single runs: what all say, else that it holds in part."""
    return verdicts[0] if len(set(verdicts)) == 1 else "supported in part"


def same_method(evidence: Evidence) -> Finding:
    """Compare what shares a mask, and the factor on it, in runs of Eq. 2 and of Algorithm 1."""
    step, token = (evidence.masked(granularity=name) for name in ("step", "token"))
    alike = [_tokens_share(evidence, runs) for runs in (step, token)]
    factors = [set(evidence.values(RESCALE, runs)["measured"].round(2)) for runs in (step, token)]
    if not alike[0] or not alike[1]:
        return needs("a run with a mask per step and one with a mask per token, with their gates")
    text = (
        "Gates that differ between the tokens of a row, step masks: "
        f"{evidence.quote(OVER_TOKENS, step)}. Directions that two tokens share, token masks: "
        f"{evidence.quote(TOKENS_DIFFER, token)}. Kept gates: "
        f"{evidence.quote(RESCALE, step + token)}."
    )
    if set(alike[0].values()) == {True} and set(alike[1].values()) == {False}:
        return Finding("contradicted", text)
    if len({*alike[0].values(), *alike[1].values()}) > 1:
        return Finding("undecided", text)
    return Finding("supported" if factors[0] == factors[1] else "supported in part", text)


def one_subspace_a_step(evidence: Evidence) -> Finding:
    """Ask whether a step uses one subspace, and whether the next step's is another."""
    verdicts: list[Verdict] = []
    step, token = (evidence.masked(granularity=name) for name in ("step", "token"))
    for run in step:
        jaccard = evidence.values("Jaccard of next masks", [run])["measured"]
        if jaccard.empty:
            continue
        varies = _total(evidence, OVER_TOKENS, run) + _total(evidence, OVER_ROWS, run)
        own = bool((jaccard <= OWN).all())
        verdicts.append("contradicted" if varies else "supported" if own else "supported in part")
    left = "directions that step 1 left"
    for run in token:
        rows = evidence.values(left, [run])
        if not rows.empty:
            updated = 1 - rows["measured"].sum() / rows["samples"].sum()
            verdicts.append("contradicted" if updated > MOST else "supported")
    if not verdicts:
        return needs("a masked run")
    shown = {
        "Step masks: Jaccard index of successive masks": ("Jaccard of next masks", step),
        "Gates that differ between rows of a batch": (OVER_ROWS, step),
        "Token masks: directions that step 1 did not update": (left, token),
    }
    quoted = {name: evidence.quote(*what) for name, what in shown.items()}
    text = " ".join(f"{name}: {numbers}." for name, numbers in quoted.items() if numbers)
    return Finding(combine(verdicts), text)


def never_twice(evidence: Evidence) -> Finding:
    """Count the steps whose mask a module had before."""
    import numpy as np

    step = [run for run in evidence.masked(granularity="step") if run.mask_steps]
    if not step:
        return needs("a run with a mask per step")
    shown: list[str] = []
    verdicts: list[Verdict] = []
    for run in step:
        total = again = 0
        for rank in run.modules["r"].unique():
            for masks in run.masks_of_rank(int(rank))[1].swapaxes(0, 1):
                again += len(masks) - len(np.unique(masks, axis=0))
                total += len(masks)
        verdicts.append("contradicted" if again else "supported")
        ranks = "/".join(str(rank) for rank in run.modules["r"].unique())
        shown.append(f"{run.name} {again / total:.1%} (r = {ranks}, n = {total:,})")
    text = f"Masks that the same module had in an earlier step: {', '.join(shown)}."
    return Finding(combine(verdicts), text)


def half_the_rank(evidence: Evidence) -> Finding:
    """Ask which ranks of masked updates are half of the full update's at keep_prob 0.5."""
    runs = [
        run
        for run in evidence.masked(granularity="step")
        if run.mask_law and run.mask_law.keep_prob == 0.5
    ]
    exceptions = evidence.values("masked rank is the kept count", runs)["measured"]
    kept = evidence.values("kept directions, mean", runs)
    entropy, stable = "masked entropy rank over full", "masked stable rank over full"
    if exceptions.empty or kept.empty:
        return needs("a run with step masks of keep_prob 0.5 and cores")
    # The rank is that of the mask, so its mean is half of r where that of the masks is.
    halved = [_is_half(0.5 * kept["measured"] / kept["predicted"]) and not exceptions.sum()]
    halved += [_is_half(evidence.values(name, runs)["measured"]) for name in (entropy, stable)]
    verdict: Verdict = "supported" if all(halved) else "contradicted"
    return Finding(
        "supported in part" if any(halved) and not all(halved) else verdict,
        f"Mean number of kept directions: {evidence.quote('kept directions, mean', runs)}; masked "
        "updates whose rank is not that number: "
        f"{evidence.quote('masked rank is the kept count', runs)}. Masked over full, entropy "
        f"effective rank: {evidence.quote(entropy, runs)}; stable rank: "
        f"{evidence.quote(stable, runs)}.",
    )


def only_the_kept(evidence: Evidence) -> Finding:
    """Ask how far masked directions moved, under AdamW and under SGD."""
    step = evidence.masked(granularity="step")
    moved = "B's displacement while masked"
    still = "masked directions stand still"
    adam, sgd = evidence.values(moved, step), evidence.values(still, step)
    if adam.empty and sgd.empty:
        return needs("a run with step masks and cores of every step")
    shown = []
    if not adam.empty:
        shown.append(
            f"AdamW, share of the displacement made while masked: B {evidence.quote(moved, step)}; "
            f"A {evidence.quote(moved.replace('B', 'A'), step)}."
        )
    if not sgd.empty:
        quoted = evidence.quote(still, step)
        shown.append(f"Plain SGD, masked directions that moved: {quoted}.")
    moving = [*(adam["measured"] > MOVED), *(sgd["measured"] > 0)]
    verdicts: list[Verdict] = ["contradicted" if one else "supported" for one in moving]
    return Finding(combine(verdicts), " ".join(shown))


def unlike_dropout(evidence: Evidence) -> Finding:
    """Ask which runs mask each token with coin flips of its own and the rescale of dropout."""
    verdicts: list[Verdict] = []
    for run in evidence.masked():
        shared = _tokens_share(evidence, [run])
        factors = evidence.values(RESCALE, [run])["measured"]
        if not shared or factors.empty:
            continue
        assert run.mask_law is not None
        expected = 1 / run.mask_law.keep_prob
        rescaled = bool((abs(factors / expected - 1) < SAME_FACTOR).all())
        dropout = rescaled and not shared[run.name] and run.mask_law.independent_gates
        verdicts.append("contradicted" if dropout else "supported")
    if not verdicts:
        return needs("masked runs with their gates; one with a mask per token, as in the code")
    runs = evidence.masked()
    shown = {
        "Kept gates": RESCALE,
        "gates kept": "gates kept, count",
        "directions that two tokens share (token masks)": TOKENS_DIFFER,
        "rows whose tokens have different gates (other masks)": OVER_TOKENS,
    }
    quoted = {name: evidence.quote(prediction, runs) for name, prediction in shown.items()}
    text = "; ".join(f"{name}: {numbers}" for name, numbers in quoted.items() if numbers)
    return Finding(combine(verdicts), f"{text}.")


def static_subspace(evidence: Evidence) -> Finding:
    """Ask whether LoRA's row space of A stands still, and a masked run's does not."""
    turns = {run: _turned(run) for run in evidence.lora + evidence.masked()}
    known = {run: turn for run, turn in turns.items() if turn is not None}
    plain, masked = (
        [known[run][0] for run in runs if run in known]
        for runs in (evidence.lora, evidence.masked())
    )
    if not plain or not masked:
        return needs("a LoRA run and a masked run with cores")
    shown = ", ".join(
        f"{run.name} {degrees:.1f}° (n = {modules} modules, update of rank {rank} of r = {most})"
        for run, (degrees, modules, rank, most) in known.items()
    )
    return Finding(
        moving_verdict(plain, masked),
        "Median over modules of the largest angle between the row space of A at the end and at "
        f"the start: {shown}.",
    )


def moving_verdict(plain: Sequence[float], masked: Sequence[float]) -> Verdict:
    """Judge by the turns of LoRA's and of masked runs' frames in degrees."""
    if max(masked) <= STATIC:
        return "contradicted"  # nothing moves with masks
    if max(plain) <= STATIC:
        return "supported" if min(masked) > STATIC else "supported in part"
    return "supported in part" if min(masked) > FASTER * max(plain) else "contradicted"


def two_masks(evidence: Evidence) -> Finding:
    """No run of this toolkit has a mask on each factor."""
    return needs("runs with a mask on A and another on B, next to runs with one; no run has two")


def _tokens_share(evidence: Evidence, runs: Sequence[Run]) -> dict[str, bool]:
    """By run: whether the tokens of a row have one mask, from the gates that were observed.

    Masks per step and sample: no row has tokens of different gates. Masks per token: two tokens
    share more directions than halfway from q^2 r (independent masks) to q r (one mask).
    """
    shared: dict[str, bool] = {}
    for run in runs:
        assert run.mask_law is not None
        q = run.mask_law.keep_prob
        constant, overlaps = (evidence.values(name, [run]) for name in (OVER_TOKENS, TOKENS_DIFFER))
        if not constant.empty:
            shared[run.name] = not constant["measured"].sum()
        elif not overlaps.empty:
            halfway = overlaps["predicted"] * (1 + 1 / q) / 2
            shared[run.name] = bool((overlaps["measured"] >= halfway).all())
    return shared


def _total(evidence: Evidence, prediction: str, run: Run) -> float:
    """Sum of a prediction's measured numbers about a run; 0 where there are none."""
    return float(evidence.values(prediction, [run])["measured"].sum())


def _is_half(ratios: pd.Series[float]) -> bool:
    return bool(len(ratios)) and bool(ratios.between(*HALF).all())


def _turned(run: Run) -> tuple[float, int, int, int] | None:
    """Median largest angle of row(A) since the start in degrees, modules, largest rank, and r."""
    import numpy as np
    import torch

    from subspace_lab import linalg

    if not run.recorded or not run.steps or run.steps[-1] == 0:
        return None
    angles: list[float] = []
    ranks: list[int] = []
    for batch in run.cores(steps=[run.steps[-1]]):
        start = batch.core.row.start
        if start is None or not batch.finite.all():
            return None
        found = linalg.principal_angles(batch.core.row.now(), batch.core.row.before("start"))
        angles += torch.rad2deg(found[..., -1]).flatten().tolist()
        sigma = batch.core.singular_values()
        ranks.append(int(linalg.effective_rank(sigma, measure="numerical").max()))
    return float(np.median(angles)), len(angles), max(ranks), int(run.modules["r"].max())
