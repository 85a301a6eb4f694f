"""What else differs between masked runs and LoRA: effective rank, parameters, time of a step."""

from __future__ import annotations

import statistics

from analyses.claims.differences import Measurement, seeds_needed
from analyses.claims.evidence import Evidence, Finding, needs
from analyses.claims.gains import decide
from subspace_lab.linalg import effective_rank
from subspace_lab.runs.run import Run


def more_directions(evidence: Evidence) -> Finding:
    """Compare entropy effective ranks of the last update with LoRA's at the same learning rate."""
    effects = evidence.against_lora(entropy_rank, quantity="entropy effective rank of dW")
    wanted = seeds_needed(len(effects))
    enough = [effect for effect in effects if effect.seeds >= wanted]
    if not enough:
        return needs(
            f"masked and LoRA runs that differ in the mask only, with cores, {wanted} seeds each"
        )
    return Finding(decide(enough), "; ".join(map(str, enough)) + ".")


def no_extra_cost(evidence: Evidence) -> Finding:
    """Compare trainable parameters, and the median time of a step, with LoRA's."""
    parameters = evidence.against_lora(trainable_parameters, quantity="trainable parameters")
    times = evidence.against_lora(step_seconds, quantity="s a step")
    wanted = seeds_needed(len(times))
    enough = [time for time in times if time.seeds >= wanted]
    text = "; ".join(map(str, [*parameters, *times])) + "."
    if any(more.estimate > 0 for more in parameters):
        return Finding("contradicted", text)
    if not enough:
        return needs(
            f"timed masked and LoRA runs that differ in the mask only, {wanted} seeds each"
        )
    slower = decide(enough)
    if slower == "supported":
        return Finding("contradicted", text)
    return Finding("supported" if slower == "contradicted" else "undecided", text)


def entropy_rank(run: Run) -> Measurement | None:
    """Median over modules of dW's entropy effective rank after the last step, if recorded."""
    if not run.recorded or not run.steps or run.steps[-1] == 0:
        return None
    ranks: list[float] = []
    for batch in run.cores(steps=[run.steps[-1]]):
        if not batch.finite.all():
            return None
        ranks += effective_rank(batch.core.singular_values()).flatten().tolist()
    return Measurement(statistics.median(ranks), f"{len(ranks)} modules")


def trainable_parameters(run: Run) -> Measurement:
    """Entries of A and B, r (m + n) of each module."""
    modules = run.modules
    count = int((modules["r"] * (modules["m"] + modules["n"])).sum())
    return Measurement(count, f"{len(modules)} modules")


def step_seconds(run: Run) -> Measurement | None:
    """Median time of a step in seconds, if recorded."""
    if "seconds" not in run.metrics or run.metrics["seconds"].isna().all():
        return None
    seconds = run.metrics["seconds"].dropna()
    return Measurement(
        float(seconds.median()), "medians over steps, on a machine as busy as it was"
    )
