"""Find out why DropLoRA works: train, record, analyse and predict masked low-rank adapters.

from subspace_lab import RankMask, Run, SubspaceRecorder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace_lab.adapters.mask import RankMask
    from subspace_lab.recording.recorder import SubspaceRecorder
    from subspace_lab.runs.run import Run

__all__ = ["RankMask", "Run", "SubspaceRecorder"]

_HOMES = {
    "RankMask": "subspace_lab.adapters.mask",
    "Run": "subspace_lab.runs.run",
    "SubspaceRecorder": "subspace_lab.recording.recorder",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: command lines answer --help at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
