"""Opening several runs by paths, globs or hub ids."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run


def open_runs(patterns: Collection[str]) -> list[Run]:
    """Open the runs that paths, globs or hub ids name, in order, each once.

    Raises:
        UserError: if a glob matches nothing, or a path is not a run.
    """
    paths: dict[Path, str] = {}
    for pattern in patterns:
        names = [pattern]
        if any(character in pattern for character in "*?[") and not Path(pattern).exists():
            names = sorted(
                name
                for name in glob.glob(pattern)  # noqa: PTH207 (absolute patterns)
                if (Path(name) / "run.json").is_file()
            )
            if not names:
                raise UserError(f"no run matches {pattern!r}")
        for name in names:
            paths.setdefault(Path(name).resolve(), name)
    return [Run(name) for name in paths.values()]
