"""Opening several runs by paths, globs or hub ids."""

from __future__ import annotations

import glob
import sys
from collections.abc import Collection
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.peft_files.checkpoints import checkpoint_folders
from subspace_lab.peft_files.configuration import CONFIG_FILE
from subspace_lab.runs.run import Run


def open_runs(patterns: Collection[str]) -> list[Run]:
    """Open the runs that paths, globs or hub ids name, in order, each once.

    Where a shell has expanded a glob, what lies beside the runs is named as well. It is skipped,
    with a line on the standard error that says so.

    Raises:
        UserError: if a glob matches nothing, a path does not exist, or none holds a run.
    """
    paths: dict[Path, str] = {}
    for pattern in patterns:
        for name in _expanded(pattern):
            paths.setdefault(Path(name).resolve(), name)
    foreign = [name for name in paths.values() if Path(name).exists() and not _holds_run(name)]
    if foreign and len(foreign) < len(paths):
        print(f"skipped, since they hold no run: {', '.join(foreign)}", file=sys.stderr)
        return [Run(name) for name in paths.values() if name not in foreign]
    return [Run(name) for name in paths.values()]  # where all are foreign, says what one lacks


def _expanded(pattern: str) -> list[str]:
    """List the run directories that a glob matches; any other name stands for itself."""
    if not any(character in pattern for character in "*?[") or Path(pattern).exists():
        return [pattern]
    names = sorted(
        name
        for name in glob.glob(pattern)  # noqa: PTH207 (absolute patterns)
        if (Path(name) / "run.json").is_file()
    )
    if not names:
        raise UserError(f"no run matches {pattern!r}")
    return names


def _holds_run(name: str) -> bool:
    """Tell whether an existing path is a run, an adapter, or a folder of adapters."""
    path = Path(name)
    files = (path / "run.json", path / CONFIG_FILE)
    adapter_file = path.suffix == ".safetensors"
    return adapter_file or any(map(Path.is_file, files)) or bool(checkpoint_folders(path))
