"""What a run trained, in the paper's words, and which runs differ in their seed only."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subspace_lab.errors import UserError
from subspace_lab.stats.seeds import MASK_FIELDS, SEED_AND_RECORDING, setting_text

if TYPE_CHECKING:
    from subspace_lab.runs.run import Run

METHODS = {
    "lora": "LoRA",
    "droplora": "DropLoRA",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "olora": "OLoRA",
    "lora_ga": "LoRA-GA",
    "corda": "CorDA",
    "eva": "EVA",
    "adalora": "AdaLoRA",
    "full": "Full",
    "galore": "GaLore",
}
NAMED = ("method", "rank_mask", "rank", *MASK_FIELDS)
"""Settings that a name tells in words of its own."""

PROBLEM = (
    "base", "task", "data_dir", "difficulty", "label_noise", "train_split", "train_size",
    "steps", "epochs",
)  # fmt: skip
"""Settings of what is learned, from what and for how long: compared runs share them."""


def settings_of(run: Run) -> dict[str, Any]:
    """Give the settings that take effect in training; the seed is none of them.

    The default alpha, a mask's settings without a mask, and epochs beside steps are left out.
    """
    from subspace_lab.adapters.methods import default_alpha

    config = run.config
    unused = {*SEED_AND_RECORDING, *(() if run.mask_law is not None else MASK_FIELDS)}
    if config.get("alpha") == default_alpha(config["method"], config["rank"]):
        unused.add("alpha")
    if config.get("steps"):
        unused.add("epochs")
    return {key: value for key, value in config.items() if key not in unused and value is not None}


def repetitions(runs: Iterable[Run]) -> list[list[Run]]:
    """Group trained runs by the settings that take effect; those of other scripts are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if {"base", "method", "rank", "seed"} <= run.config.keys():
            groups.setdefault(json.dumps(settings_of(run), sort_keys=True), []).append(run)
    return list(groups.values())


def check_same_problem(runs: Sequence[Run], *, but: Sequence[str] = ()) -> None:
    """Check that runs learned the same thing, from the same rows, for as long.

    Raises:
        UserError: if two runs differ in a setting of the problem, except those in `but`.
    """
    first, *others = [(run, settings_of(run)) for run in runs]
    for name in PROBLEM:
        usual = first[1].get(name)
        for run, settings in others:
            if name not in but and settings.get(name) != usual:
                raise UserError(
                    f"{first[0].path} has {name} {usual} and {run.path} has {settings.get(name)}: "
                    "compare runs that share base, data and length of training"
                )


def unusual_settings(runs: Sequence[Run]) -> dict[Run, str]:
    """Say, of runs of distinct configurations, in which settings each is not like most.

    Method, rank and mask are left to the names. Of a setting of which there is no most frequent
    value, the first one is taken as usual.
    """
    settings = {
        run: {key: value for key, value in settings_of(run).items() if key not in NAMED}
        for run in runs
    }
    told: dict[Run, list[str]] = {run: [] for run in runs}
    for name in dict.fromkeys(key for found in settings.values() for key in found):
        texts = {run: json.dumps(found.get(name)) for run, found in settings.items()}
        usual = collections.Counter(texts.values()).most_common(1)[0][0]
        for run, text in texts.items():
            if text != usual:
                value = settings[run].get(name)
                told[run].append(f"{name} {'default' if value is None else setting_text(value)}")
    return {run: ", ".join(found) for run, found in told.items()}


def method_name(run: Run) -> str:
    """Name a run's method as the paper's tables do; a masked baseline is told apart.

    An adapter of another kind, by --peft_config, is named by its PEFT type.
    """
    kind = (run.config.get("peft_config") or {}).get("peft_type", "LORA")
    if kind != "LORA":
        return str(kind)
    method = run.config["method"]
    masked = run.mask_law is not None and method != "droplora"
    return METHODS[method] + " with a mask" * masked


def mask_settings(config: Mapping[str, Any]) -> str:
    """Say granularity, rescale, keep_prob and, where it is not Bernoulli's, sampling of a mask.

    >>> mask_settings({"granularity": "step", "rescale": False, "keep_prob": 0.5})
    'step mask, not rescaled, keep_prob 0.5'
    """
    scale = "rescaled" if config["rescale"] else "not rescaled"
    exactly = "exact-k " if config.get("sampling") == "exact-k" else ""
    return f"{exactly}{config['granularity']} mask, {scale}, keep_prob {config['keep_prob']}"
