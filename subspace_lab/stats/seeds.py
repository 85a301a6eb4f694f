"""Which runs are repetitions of one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Settings that do not tell configurations apart: the seed, and what is recorded when.
SEED_AND_RECORDING = (
    "seed", "cores", "snapshots", "eval_every", "checkpoint_every", "test_size", "early_stopping",
)  # fmt: skip
# Settings that mean nothing to a run without a rank mask.
MASK_FIELDS = ("keep_prob", "granularity", "rescale", "sampling")


def label_configurations(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Label each run by its configuration: runs that differ in their seed only share a label.

    A label names the settings in which the configurations differ, `keep_prob 0.5, rank 8`. A run
    without a configuration (an adapter of another tool) is labelled by its own name.

    Args:
        configs: run name to configuration, plain values.

    >>> label_configurations({"a": {"rank": 8, "seed": 0}, "b": {"rank": 8, "seed": 1},
    ...                       "c": {"rank": 4, "seed": 0}})
    {'a': 'rank 8', 'b': 'rank 8', 'c': 'rank 4'}
    """
    values = {
        run: {key: json.dumps(config[key]) for key in config if key not in SEED_AND_RECORDING}
        for run, config in configs.items()
    }
    settings = list(dict.fromkeys(key for value in values.values() for key in value))
    known = [value for value in values.values() if value]
    differing = [key for key in settings if len({value.get(key) for value in known}) > 1]

    def label(run: str) -> str:
        if not values[run]:
            return run
        told = {key: configs[run][key] for key in differing if key in configs[run]}
        texts = [f"{key} {setting_text(value)}" for key, value in told.items()]
        return ", ".join(texts) or "all runs"

    return {run: label(run) for run in configs}


def setting_text(value: Any) -> str:
    """Write the value of a setting; a list as its elements joined by "+"."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
