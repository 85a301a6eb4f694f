"""What else differs between masked runs and LoRA: effective rank, parameters, time of a step."""

from __future__ import annotations

import statistics

from analyses.claims.differences import Measurement
from analyses.claims.evidence import Evidence, Finding, Verdict, last_cores
from analyses.claims.gains import decided
from subspace_lab.linalg import effective_rank
from subspace_lab.runs.run import Run


def more_directions(evidence: Evidence) -> Finding:
    """Compare entropy effective ranks of the last update with LoRA's at the same learning rate."""
    effects = evidence.against_lora(entropy_rank, quantity="entropy effective rank of dW")
    return decided(effects, "masked and LoRA runs that differ in the mask only, with cores")


def no_extra_cost(evidence: Evidence) -> Finding:
    """Compare trainable parameters, and the median time of a step, with LoRA's."""
    parameters = evidence.against_lora(trainable_parameters, quantity="trainable parameters")
    times = evidence.against_lora(step_seconds, quantity="s a step")
    text = "; ".join(map(str, [*parameters, *times])) + "."
    if any(more.estimate > 0 for more in parameters):
        return Finding("contradicted", text)
    slower = decided(times, "timed masked and LoRA runs that differ in the mask only")
    if slower.verdict == "not tested":
        return slower
    opposite: dict[Verdict, Verdict] = {"supported": "contradicted", "contradicted": "supported"}
    return Finding(opposite.get(slower.verdict, "undecided"), text)


def entropy_rank(run: Run) -> Measurement | None:
    """Median over modules of dW's entropy effective rank after the last step, if recorded."""
    of_batches = [effective_rank(batch.core.singular_values()) for batch in last_cores(run)]
    ranks = [rank for of_batch in of_batches for rank in of_batch.flatten().tolist()]
    return Measurement(statistics.median(ranks), f"{len(ranks)} modules") if ranks else None


def trainable_parameters(run: Run) -> Measurement:
    """Entries of A and B, r (m + n) of each module."""
    modules = run.modules
    count = int((modules["r"] * (modules["m"] + modules["n"])).sum())
    return Measurement(count, f"{len(modules)} modules")


def step_seconds(run: Run) -> Measurement | None:
    """Median time of a step in seconds, if recorded."""
    if "seconds" not in run.metrics or run.metrics["seconds"].isna().all():
        return None
    seconds = float(run.metrics["seconds"].median())
    return Measurement(seconds, "medians over steps, on a machine as busy as it was")
