"""What a run trained, in the paper's words, and which runs differ in their seed only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace_lab.recording.run import Run

METHODS = {
    "lora": "LoRA",
    "droplora": "DropLoRA",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "full": "Full",
}


def repetitions(runs: Iterable[Run]) -> list[list[Run]]:
    """Group recorded runs by configuration, the seed and what is recorded when left aside."""
    from subspace_lab.stats.seeds import IGNORED

    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            kept = {key: value for key, value in run.config.items() if key not in IGNORED}
            groups.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    return list(groups.values())


def method_name(run: Run) -> str:
    """Name a run's method as the paper's tables do; a masked baseline is told apart."""
    method = run.config["method"]
    masked = run.mask_law is not None and method != "droplora"
    return METHODS[method] + " with a mask" * masked


def mask_settings(config: Mapping[str, Any]) -> str:
    """Say granularity, rescale and keep_prob of a rank mask.

    >>> mask_settings({"granularity": "step", "rescale": False, "keep_prob": 0.5})
    'step mask, not rescaled, keep_prob 0.5'
    """
    scale = "rescaled" if config["rescale"] else "not rescaled"
    return f"{config['granularity']} mask, {scale}, keep_prob {config['keep_prob']}"
