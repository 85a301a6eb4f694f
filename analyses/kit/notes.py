"""Notes on a run's results: what they do not cover, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from subspace_lab.runs.run import Run

MAX_NAMES = 3


def notes(run: Run) -> list[str]:
    """Say in a sentence each which adapter is final, what is not testable, not analyzed or nan.

    Nan and infinities are those that were met so far, in what was read of the run.
    """
    lines = [run.snapshots.root.note] if run.snapshots.root else []
    if run.gates_chosen:
        lines.append(
            "gates were chosen in training, so its steps have no single mask: what theory predicts "
            "of masks and of steps under them is not testable"
        )
    for (kind, reason), rows in run.left_out.groupby(["kind", "reason"], sort=False):
        parameters = rows["parameters"].sum()
        size = f"; {parameters:,} parameters" if parameters else ""
        lines.append(f"not analyzed: {reason} ({_names(rows['name'], str(kind))}{size})")
    analyzed, all_parameters = run.coverage
    if analyzed < all_parameters:
        share = analyzed / all_parameters
        lines.append(
            f"analyzed: {analyzed:,} of {all_parameters:,} parameters of the adapter ({share:.1%})"
        )
    if steps := sorted(run.not_finite):
        modules = list(
            dict.fromkeys(name for step in steps for name in sorted(run.not_finite[step]))
        )
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        lines.append(
            f"not finite (nan or infinite weights) at {span}: {_names(modules, 'module')}; their "
            "numbers are nan"
        )
    return lines


def print_notes(notes: Mapping[str, Sequence[str]]) -> None:
    """Print the notes on each run, a line each."""
    for run, lines in notes.items():
        for line in lines:
            print(f"  note on {run}: {line}")


def why_nothing(run: Run) -> str:
    """Say why a run has no module that can be analyzed."""
    reasons = run.left_out["reason"].unique()
    return str(reasons[0]) if len(reasons) else "its adapter has no factors B and A"


def _names(names: pd.Series | list[str], kind: str) -> str:
    """Count names and list the first."""
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
    plural = "s" * (len(listed) != 1)
    return f"{len(listed)} {kind}{plural}: {', '.join(listed[:MAX_NAMES])}{more}"
