"""Notes on a run's results: what they do not cover, and why."""

from __future__ import annotations

from collections.abc import Collection

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
        modules = dict.fromkeys(name for step in steps for name in sorted(run.not_finite[step]))
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        lines.append(
            f"not finite (nan or infinite weights) at {span}: {_names(modules, 'module')}; their "
            "numbers are nan"
        )
    return lines


def _names(names: Collection[str], kind: str) -> str:
    """Count names and list the first."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    plural = "s" * (len(names) != 1)
    return f"{len(names)} {kind}{plural}: {', '.join(list(names)[:MAX_NAMES])}{more}"
