"""One process writes a run: a lock beside its folder, which the system frees with the process."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock


def run_lock(run: Path) -> FileLock:
    """Return the lock that is held while the run in a folder is trained.

    It belongs to the folder itself, whatever symbolic links lead there.
    """
    folder = run.resolve()
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")
