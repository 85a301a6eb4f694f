"""Which runs, steps and modules a command line names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from subspace_lab import schedule
from subspace_lab.errors import UserError
from subspace_lab.runs.opening import open_runs
from subspace_lab.runs.run import Run


def open_named_runs(patterns: Sequence[Sequence[str]]) -> list[Run]:
    """Open the runs of all --run options, and give them names that tell them apart.

    The name of a run that diverged says so, wherever it is shown.
    """
    runs = open_runs([pattern for group in patterns for pattern in group])
    folders = [run.path.resolve() for run in runs]
    for depth in range(2, max((len(folder.parts) for folder in folders), default=0)):
        if len({run.name for run in runs}) == len(runs):
            break
        for run, folder in zip(runs, folders, strict=True):
            run.name = "/".join(folder.parts[-depth:])
    for run in runs:
        if run.diverged_at is not None:
            run.name += f" (diverged at step {run.diverged_at})"
    return runs


def select_steps(run: Run, available: Sequence[int], text: str | None) -> list[int] | None:
    """Read --steps against the steps that a run has; None: all.

    Raises:
        UserError: if a listed step is not there, or none is selected.
    """
    if text is None:
        return None
    if not available:
        raise UserError(f"{run.path} has recorded no step for this analysis: omit --steps")
    if text == "last":
        return list(available[-1:])
    due = schedule.parse(text)
    chosen = [step for step in available if due(step)]
    asked = map(int, text.split(",")) if text[:1].isdigit() else chosen
    if missing := sorted({*asked}.difference(chosen)):
        raise UserError(
            f"{run.path} has nothing recorded at step {', '.join(map(str, missing))}: it has "
            f"{len(available)} steps from {available[0]} to {available[-1]}"
        )
    if not chosen:
        raise UserError(f"--steps {text} selects none of the {len(available)} steps of {run.path}")
    return chosen


def select_modules(run: Run, patterns: Sequence[str] | None) -> list[str] | None:
    """Read --modules against a run's modules: by projection, full path, or a glob of either.

    Raises:
        UserError: if a pattern matches nothing.
    """
    if patterns is None:
        return None
    chosen: dict[str, None] = {}
    pairs = list(run.modules[["module", "projection"]].itertuples(index=False))
    for pattern in patterns:
        matching = [pair[0] for pair in pairs if fnmatch.filter(pair, pattern)]
        if not matching:
            known = ", ".join(dict.fromkeys(run.modules["projection"]))
            raise UserError(
                f"{run.path} has no module {pattern!r}: its projections are {known}, its modules "
                f"are named like {pairs[0][0]}"
            )
        chosen |= dict.fromkeys(matching)
    return list(chosen)
