"""Configurations in the paper's words, and the runs that repeat one under several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from subspace_lab.configurations import (
    MASK,
    PROBLEM,
    identity,
    in_effect,
    is_masked,
    setting_text,
    unusual_settings,
    without_seed,
)
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import LAWS, rescale_name

METHODS = {
    "lora": "LoRA", "droplora": "DropLoRA", "dora": "DoRA", "pissa": "PiSSA", "milora": "MiLoRA",
    "olora": "OLoRA", "lora_ga": "LoRA-GA", "corda": "CorDA", "eva": "EVA", "adalora": "AdaLoRA",
    "full": "Full", "galore": "GaLore",
}  # fmt: skip
RESCALES = {"none": "not rescaled", "keep_prob": "rescaled", "realized": "rescaled by its mean"}
USUAL = {
    "dwell": 1,
    "keep_prob_schedule": "constant",
    "shared_mask": False,
    "masks_per_step": 1,
    "objective": "loss",
}
"""Settings of a mask that are named where they differ from these, or have a value at all."""
COLUMNS = ["rank", *MASK, "other_settings"]
"""Columns of a table that tell configurations apart, beside the method."""


def repetitions(runs: Iterable[Run]) -> list[list[Run]]:
    """Group trained runs by the settings in effect; those of other scripts are excluded."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if {"base", "method", "rank", "seed"} <= run.config.keys():
            groups.setdefault(identity(without_seed(run.config)), []).append(run)
    return list(groups.values())


def check_same_problem(runs: Sequence[Run], *, but: Sequence[str] = ()) -> None:
    """Check that runs learned the same thing, from the same examples, for as long.

    Raises:
        UserError: if two runs differ in a setting of the problem, except those in `but`.
    """
    settings = [without_seed(run.config, but=but) for run in runs]
    for name in PROBLEM:
        usual, *others = (of_run.get(name) for of_run in settings)
        for run, value in zip(runs[1:], others, strict=True):
            if value != usual:
                raise UserError(
                    f"{runs[0].path} has {name} {usual} and {run.path} has {value}: "
                    "compare runs that share base, data and length of training"
                )


def describe(runs: Sequence[Run], *, but: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Give `method` and COLUMNS of runs of distinct configurations.

    `rank` is 0 of full fine-tuning, the settings of a mask are None without one, and
    `other_settings` says what else is unlike most of these runs, except the settings in `but`.
    """
    unusual = unusual_settings([run.config for run in runs], but=but)
    return [
        {
            "method": method_name(run),
            "rank": 0 if run.config["method"] == "full" else int(run.config["rank"]),
            **{name: in_effect(run.config).get(name) for name in MASK},
            "other_settings": other,
        }
        for run, other in zip(runs, unusual, strict=True)
    ]


def method_name(run: Run) -> str:
    """Name a run's method as the paper's tables do, and say where a baseline has a mask.

    An adapter of another kind, by --peft_config, is named by its PEFT type.
    """
    kind = (run.config.get("peft_config") or {}).get("peft_type", "LORA")
    if kind != "LORA":
        return str(kind)
    method = run.config["method"]
    masked = is_masked(run.config) and method != "droplora"
    return METHODS[method] + " with a mask" * masked


def mask_text(settings: Mapping[Any, Any]) -> str:
    """Say sampling, where it is not Bernoulli's, granularity and rescale of a mask; "" of none.

    >>> mask_text({"granularity": "step", "rescale": False, "sampling": "exact-k"})
    'exact-k step mask, not rescaled'
    """
    if pd.isna(settings["granularity"]):
        return ""
    sampling = _sampling(settings)
    kind = "" if sampling == "bernoulli" else f"{sampling} "
    named = [f"{kind}{settings['granularity']} mask", RESCALES[rescale_name(settings["rescale"])]]
    for name in MASK[4:]:
        value = settings.get(name)
        if value not in (None, USUAL.get(name)) and value == value:  # nan in a table without it
            named.append(f"{name} {setting_text(value)}")
    return ", ".join(named)


def settings_text(settings: Mapping[Any, Any], *, with_rank: bool) -> str:
    """Write the columns of a configuration in words.

    >>> settings_text({"rank": 8, "other_settings": "", "granularity": "step", "rescale": True,
    ...                "keep_prob": 0.5, "sampling": None}, with_rank=True)
    'rank 8, step mask, rescaled, keep_prob 0.5'
    """
    rank = f"rank {settings['rank']}" if with_rank and settings["rank"] else ""
    parts = [rank, settings["other_settings"], mask := mask_text(settings)]
    if mask and LAWS[_sampling(settings)].uses_keep_prob:
        parts.append(f"keep_prob {settings['keep_prob']}")
    return ", ".join(filter(None, parts))


def _sampling(settings: Mapping[Any, Any]) -> str:
    """Give a mask's sampling; a run that does not name it, as of another tool, has Bernoulli's."""
    sampling = settings.get("sampling")
    return "bernoulli" if pd.isna(sampling) else str(sampling)
